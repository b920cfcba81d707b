"""A misspelled variable is told, with the nearest right name."""

from __future__ import annotations

import pytest

from lorayard.process.environment import run_service
from lorayard.process.variables import unknown_variables


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("LORAYARD_MAX_LORAZ", "did you mean LORAYARD_MAX_LORAS?"),
        ("LORAYARD_REDIS_URI", "did you mean LORAYARD_REDIS_URL?"),
        ("lorayard_retention_day", "LORAYARD_RETENTION_DAY is set, but no process of this release reads it"),
        ("LORAYARD_ANYTHING_ELSE", "docs/configuration.md has those that are"),
    ],
)
def test_a_name_that_nobody_reads_is_told_with_the_nearest(name: str, told: str) -> None:
    (line,) = unknown_variables([name, "PATH", "LORAYARD_MODEL"])

    assert told in line


def test_what_a_cluster_sets_is_nobodys_mistake() -> None:
    named = [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_6379_TCP",
        "PORT_6379_TCP_ADDR",
    ]

    assert unknown_variables(f"LORAYARD_REDIS_{name}" for name in named) == []


def test_a_service_tells_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAYARD_MAX_LORAZ", "9")

    assert run_service(lambda: len(capsys.readouterr().err.splitlines())) == 1

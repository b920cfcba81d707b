"""A process that was told nonsense says so in one line and ends with a status of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic_settings import BaseSettings

from lorayard.process.environment import BAD_ENVIRONMENT, readable_settings


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("scheduler", "LORAYARD_MODEL"),
        ("workers", "LORAYARD_MODEL"),
        ("workers.webhooks", "LORAYARD_DATABASE_URL"),
    ],
)
def test_a_missing_variable_is_one_line(module: str, missing: str) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("LORAYARD_")}

    run = subprocess.run(
        [sys.executable, "-m", module], env=bare, capture_output=True, text=True, check=False
    )

    assert run.returncode == BAD_ENVIRONMENT
    assert missing in run.stderr
    assert "not set" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_service_that_is_refused_in_a_container_stays_until_it_is_stopped() -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("LORAYARD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "workers.webhooks"],
        env=bare | {"LORAYARD_HOLD_REFUSED": "true"},
        stderr=subprocess.PIPE,
        text=True,
    ) as held:
        assert held.stderr is not None
        said = [held.stderr.readline(), held.stderr.readline()]
        assert held.poll() is None
        held.terminate()

        assert held.wait(60) == BAD_ENVIRONMENT
    assert "LORAYARD_DATABASE_URL" in said[0]
    assert "held until stopped" in said[1]


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class SampleSettings(BaseSettings):
        number: int = 0

    monkeypatch.setenv("NUMBER", "many")

    with pytest.raises(SystemExit) as ended, readable_settings("sample"):
        SampleSettings()

    assert ended.value.code == BAD_ENVIRONMENT
    assert "NUMBER='many'" in capsys.readouterr().err

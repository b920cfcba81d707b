"""The engine's log: JSON for programs, words for people."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from workers.engine.serving.log_lines import log_as_json, log_in_words


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_worker_gets_json_with_its_fields_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json({"worker": "w1", "process": "engine"})

    structlog.get_logger("one").warning("adapter.warning", adapter="sql", warning="no base is named")
    structlog.get_logger("one").info("adapter.loaded", load_ms=1.5)

    out, err = capsys.readouterr()
    first, second = map(json.loads, err.splitlines())
    assert out == ""
    assert {**first, "timestamp": ""} == {
        "event": "adapter.warning",
        "level": "warning",
        "adapter": "sql",
        "warning": "no base is named",
        "worker": "w1",
        "process": "engine",
        "timestamp": "",
    }
    assert (second["event"], second["level"]) == ("adapter.loaded", "info")


def test_a_person_reads_each_warning_once_and_nothing_that_is_said_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_in_words()
    log = structlog.get_logger("one")

    for _ in range(2):
        log.warning("adapter.warning", adapter="sql", warning="no base is named")
    log.warning("adapter.load_failed", adapter="sql", path="/x", error="gone")
    log.info("adapter.loaded", load_ms=1.5)
    log.warning("something.new", count=3)

    assert capsys.readouterr().err.splitlines() == [
        "warning: sql: no base is named",
        'warning: something.new: {"count": 3}',
    ]


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, line: str) -> int:
            raise OSError(28, "No space left on device", line)

    monkeypatch.setattr("sys.stderr", Full())
    log_as_json({})

    structlog.get_logger("one").warning("adapter.warning")

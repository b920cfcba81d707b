"""Log lines of a process: one JSON object a line on standard error, the libraries' warnings among them."""

from __future__ import annotations

import json
import logging
import sys
from typing import IO

import structlog


class LogFile:
    """A file that takes what it can: a full disk must not become an error of whoever logs.

    What could not be written is counted, and told by the first line that goes through again.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._num_lost = 0

    def write(self, line: str) -> None:
        """Write a line, or count it as lost."""
        if self._num_lost:
            told = {"event": "log.lines_lost", "level": "error", "lines": self._num_lost}
            line = f"{json.dumps(told)}\n{line}"
        try:
            self._file.write(line)
            self._file.flush()
            self._num_lost = 0
        except (OSError, ValueError):  # no room, no reader, closed
            self._num_lost += 1

    def flush(self) -> None:
        """Nothing is left to do after `write`."""


def worded(error: BaseException) -> str:
    """Name an error and what it says, if it can say it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - its own doing
        return type(error).__name__


def configure_logs(**always: str) -> None:
    """Send this process's log lines to standard error, each with the given fields."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**event, **always},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=LogFile(sys.stderr)),  # type: ignore[arg-type]
    )

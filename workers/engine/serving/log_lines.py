"""How the engine's log is written: for a program as JSON lines, for a person at a shell as plain words."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import IO, Any

import structlog


class _Lossy:
    """Standard error, as a log sees it: a full disk must not end the engine."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Write what can be written."""
        with suppress(OSError, ValueError):
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """Nothing is left to do after `write`."""


def log_as_json(always: Mapping[str, str]) -> None:
    """Send this process's log to standard error, one JSON object a line, each with these fields."""
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**event, **always},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=_Lossy(sys.stderr)),  # type: ignore[arg-type]
    )


def log_in_words() -> None:
    """Send this process's warnings to standard error, each once, a line that a person can read."""
    structlog.configure(
        processors=[_Words()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(file=_Lossy(sys.stderr)),  # type: ignore[arg-type]
    )


class _Words:
    """Mutable: what it has said already, and says no more."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        line = f"warning: {_worded(**event)}"
        if event["event"] == "adapter.load_failed" or line in self._said:
            raise structlog.DropEvent  # a failed load is an error, which whoever asked for it is told
        self._said.add(line)
        return line


def _worded(event: str, **fields: Any) -> str:
    if event == "adapter.warning":
        return f"{fields['adapter']}: {fields['warning']}"
    if event == "generation_config.not_applied":
        return f"{fields['file']}: {', '.join(fields['parameters'])} not applied: {fields['remedy']}"
    return f"{event}: {json.dumps(fields, default=str)}"

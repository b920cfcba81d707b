"""Log lines of a process: one JSON object a line on standard error, the libraries' warnings among them."""

from __future__ import annotations

import logging
import sys

import structlog


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )

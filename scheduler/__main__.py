"""Runs a scheduler process: `python -m scheduler`, configured by LORAYARD_* variables."""

from __future__ import annotations

import logging
import signal
import sys
import threading

import structlog
from pydantic import ValidationError

from db.errors import DatabaseError
from db.secrets import SecretBox
from db.settings import SecretSettings
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings


def main() -> int:
    """Serve until SIGTERM or SIGINT; answers the exit status."""
    _configure_logging()
    try:
        keys = [key.get_secret_value() for key in SecretSettings().secret_key]
        seal = SecretBox(keys).seal_new if keys else None
        scheduler = Scheduler(SchedulerSettings(), seal=seal)
    except ValidationError as error:
        names = ", ".join(f"LORAYARD_{str(entry['loc'][0]).upper()}" for entry in error.errors())
        print(f"scheduler: {names} is missing or wrong: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (DatabaseError, OSError, ValueError) as error:
        print(f"scheduler: {error}", file=sys.stderr)  # noqa: T201
        return 2
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    scheduler.run(stopping)
    return 0


def _configure_logging() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    sys.exit(main())

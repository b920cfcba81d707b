"""Runs a scheduler process: `python -m scheduler`, configured by LORAYARD_* variables."""

from __future__ import annotations

import sys

from lorayard.process.environment import (
    BAD_ENVIRONMENT,
    leave_out_extras,
    readable_settings,
    run_service,
    withdraw_readiness,
)
from lorayard.process.garbage import imports_are_done
from lorayard.process.packages import require_own_packages

if __name__ == "__main__":
    leave_out_extras()
    withdraw_readiness()
    require_own_packages("scheduler")

from db.errors import DatabaseError
from db.secrets import SecretBox
from db.server_check import require_usable_ledger
from db.settings import SecretSettings
from lorayard.process.logs import configure_logs
from lorayard.process.server_check import require_usable_redis
from lorayard.process.stop_request import StopRequest
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings

GAVE_UP = 1
"""Exit status of a process that could not go on: whoever supervises it starts another."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    with readable_settings("scheduler"):
        settings = SchedulerSettings()
        keys = SecretSettings().keys
    configure_logs(process="scheduler")
    try:
        scheduler = Scheduler(settings, seal=SecretBox(keys).seal_new if keys else None)
    except (DatabaseError, OSError, ValueError) as error:
        print(f"scheduler: {error}", file=sys.stderr)  # noqa: T201
        return BAD_ENVIRONMENT
    stopping = StopRequest()
    stopping.listen()
    require_usable_redis("scheduler", settings.redis_url)
    require_usable_ledger("scheduler", settings.database_url.get_secret_value())
    return 0 if scheduler.run(stopping) else GAVE_UP


if __name__ == "__main__":
    imports_are_done()
    sys.exit(run_service(main))

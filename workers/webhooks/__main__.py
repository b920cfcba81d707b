"""`python -m workers.webhooks`: delivers webhooks until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from lorayard.process.environment import (
    BAD_ENVIRONMENT,
    leave_out_extras,
    readable_settings,
    run_service,
    withdraw_readiness,
)
from lorayard.process.packages import require_own_packages

if __name__ == "__main__":
    leave_out_extras()
    withdraw_readiness()
    require_own_packages("workers.webhooks")

from db import Database, DatabaseSettings
from db.database import MAX_HOLD_MS
from db.secrets import SecretBox
from db.server_check import require_usable_ledger
from db.settings import SecretSettings
from lorayard.process.logs import configure_logs
from lorayard.process.stop_request import StopRequest
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.outbox import Outbox
from workers.webhooks.relay import Relay, RelayConfig
from workers.webhooks.sender import Sender
from workers.webhooks.settings import RelaySettings

GAVE_UP = 1
"""Exit status of a process that could not go on: whoever supervises it starts another."""


async def serve(
    settings: RelaySettings,
    database: Database,
    lease_database: Database,
    secrets: SecretBox,
    request: StopRequest,
) -> bool:
    """Run the relay until it is told to stop; what is being sent then is finished. False if it gave up."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_request() -> None:
        loop.remove_reader(request)
        stop.set()

    loop.add_reader(request, on_request)
    config = RelayConfig(settings.webhook_concurrency, settings.webhook_per_host)
    policy = AddressPolicy(settings.webhook_allow)
    outbox = Outbox(database, lease_database, config.lease_s)

    def on_ready() -> None:
        if settings.ready_file is not None:
            settings.ready_file.touch()

    async with Sender(policy, settings.webhook_timeout_s, config.concurrency) as sender:
        return await Relay(outbox, sender, secrets, config).run(stop, on_ready)


def make_databases(ledger: DatabaseSettings) -> tuple[Database, Database]:
    """Make the connections for claims and ends, and the one for the lease."""
    lease = ledger.model_copy(update={"database_pool_size": 1})
    return (
        Database.from_settings(ledger, lock_timeout_ms=MAX_HOLD_MS, name="lorayard-webhooks"),
        Database.from_settings(lease, lock_timeout_ms=MAX_HOLD_MS, name="lorayard-webhooks"),
    )


def main() -> int:
    """Read the environment and serve; returns the exit status."""
    with readable_settings("workers.webhooks"):
        settings, ledger = RelaySettings(), DatabaseSettings()
        keys = SecretSettings().keys
    configure_logs(process="webhooks")
    try:
        secrets = SecretBox(keys)
    except ValueError as error:
        print(f"workers.webhooks: {error}", file=sys.stderr)  # noqa: T201
        return BAD_ENVIRONMENT
    stop = StopRequest()
    stop.listen()  # asyncio's own handlers go with its loop, and a second signal would kill what has drained
    require_usable_ledger("workers.webhooks", ledger.database_url.get_secret_value())
    database, lease_database = make_databases(ledger)
    try:
        served = asyncio.run(serve(settings, database, lease_database, secrets, stop))
    finally:
        database.dispose()
        lease_database.dispose()
    return 0 if served else GAVE_UP


if __name__ == "__main__":
    sys.exit(run_service(main))

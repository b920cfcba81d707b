"""No process of the pipeline, stopped at any moment, holds locks in the ledger for more than four seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, text

from db import Database, DatabaseSettings
from db.server_check import look_database
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings
from workers.settings import WorkerSettings
from workers.webhooks.__main__ import make_databases
from workers.wiring import commits_database, lease_database

MODEL = Path(__file__).parents[2] / "examples" / "tiny" / "base"
LIMITS = ("idle_in_transaction_session_timeout", "lock_timeout", "tcp_user_timeout")
MAX_MS = 4000


def services(redis_url: str, database_url: str, store: Path) -> Iterator[tuple[str, Database]]:
    """Make the ledger of each service as the service itself does, by what it is for."""
    secret = SecretStr(database_url)
    scheduler = Scheduler(SchedulerSettings(redis_url=redis_url, database_url=secret, model=MODEL))
    worker = WorkerSettings(redis_url=redis_url, database_url=database_url, model=MODEL, adapter_store=store)
    claims, lease = make_databases(DatabaseSettings(database_url=secret))
    yield "leader", scheduler._database
    yield "term", scheduler._terms
    yield "results of a worker", commits_database(worker)
    yield "lease and arrivals of a worker", lease_database(worker)
    yield (
        "lease of a worker with a short one",
        lease_database(worker.model_copy(update={"worker_lease_s": 2.0})),
    )
    yield "claims of a relay", claims
    yield "lease of a relay", lease
    yield "first look of any", look_database(database_url, "workers")


def in_force(connection: Connection) -> dict[str, int]:
    """Read the limits as the transaction has them, in milliseconds."""
    rows = connection.execute(
        text("SELECT name, setting::integer FROM pg_settings WHERE name = ANY(:names)"),
        {"names": list(LIMITS)},
    )
    return {row.name: row.setting for row in rows}


def test_every_transaction_of_a_service_is_ended_within_four_seconds_of_its_process_standing_still(
    redis_url: str, shared_database_url: str, tmp_path: Path
) -> None:
    for what, database in services(redis_url, shared_database_url, tmp_path):
        limits = database.run(in_force)
        looked = database.look(text("SELECT current_setting('idle_in_transaction_session_timeout')"))
        database.dispose()

        assert limits.keys() == set(LIMITS), what
        assert all(0 < limit <= MAX_MS for limit in limits.values()), (what, limits)
        assert looked == "4s", what

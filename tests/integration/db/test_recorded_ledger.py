"""A ledger that version 0.1 filled comes through the migrations with every row intact."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from db.migrate import Migration, downgrade, upgrade
from db.models import Table
from lorayard.contract.reading import read_request
from lorayard.contract.request import NEUTRAL
from lorayard.contract.states import JobState
from lorayard.local import plain_url
from tests.integration.db.ledger import Ledger
from tests.polling import eventually
from tests.recorded.fill_ledger import fill

DUMP = Path(__file__).parents[2] / "recorded" / "ledger" / "0004.sql"

Rows = dict[str, list[dict[str, Any]]]


def read_all(url: str) -> Rows:
    """Every row of every table, with its values as Postgres writes them."""
    with psycopg.connect(plain_url(url)) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        rows: Rows = {}
        for (table,) in tables.fetchall():
            names = [
                name
                for (name,) in connection.execute(
                    "SELECT column_name::text FROM information_schema.columns"
                    " WHERE table_schema = 'public' AND table_name = %s",
                    (table,),
                ).fetchall()
            ]
            shown = ", ".join(f"{name}::text" for name in names)
            values = connection.execute(f"SELECT {shown} FROM {table} ORDER BY {shown}").fetchall()
            rows[table] = [dict(zip(names, row, strict=True)) for row in values]
        return rows


@pytest.fixture
def recorded(empty_database_url: str) -> str:
    """A database as version 0.1 left it."""
    with psycopg.connect(plain_url(empty_database_url), autocommit=True) as connection:
        connection.execute(DUMP.read_bytes())
    return empty_database_url


def test_the_dump_holds_rows_of_every_table_and_jobs_in_every_state(recorded: str) -> None:
    rows = read_all(recorded)

    assert {table for table, found in rows.items() if found} == set(rows)
    assert {job["state"] for job in rows["jobs"]} == {state.value for state in JobState}
    assert {job["state"] for job in rows["webhook_deliveries"]} == {"pending", "delivered", "dead"}
    assert {worker["state"] for worker in rows["workers"]} == {"ready", "draining", "gone", "lost"}
    assert {one["ended"] for one in rows["attempts"]} >= {"released", "lost", "succeeded", "dead"}


def test_a_ledger_of_today_can_be_filled_to_be_recorded(database_url: str) -> None:
    filled = fill(database_url)

    assert {job.state for job in filled.finished} >= {state for state in JobState if state.is_terminal}
    assert {job["state"] for job in read_all(database_url)["jobs"]} == {state.value for state in JobState}


def test_rows_come_through_the_migrations_intact(recorded: str) -> None:
    before = read_all(recorded)

    done = upgrade(recorded)

    after = read_all(recorded)
    assert done.before == "0004"
    assert set(after) == set(Table.metadata.tables) | {"alembic_version"}
    for table in set(before) - {"alembic_version"}:
        kept = set(before[table][0]) & set(after[table][0])
        assert kept, table
        assert project(after[table], kept) == project(before[table], kept), table


def test_the_way_back_leads_to_the_rows_of_the_old_ledger(recorded: str) -> None:
    before = read_all(recorded)
    upgrade(recorded)

    undone = downgrade(recorded, "0004")

    assert str(undone) == "schema downgraded from 0013 to 0004"
    after = read_all(recorded)
    assert set(after) == set(before)
    for table, rows in before.items():
        assert set(after[table][0]) == set(rows[0]), table
        if table != "job_inputs":  # JSON may be spaced otherwise: test_one_request.py compares what it means
            assert project(after[table], set(rows[0])) == project(rows, set(rows[0])), table
    assert upgrade(recorded).before == "0004"


@pytest.mark.parametrize(
    ("migrate", "read", "write"),
    [
        (upgrade, "jobs", "UPDATE jobs SET strikes = strikes"),
        (upgrade, "workers", "UPDATE jobs SET strikes = strikes"),
        (upgrade, "adapter_revisions", "UPDATE jobs SET strikes = strikes"),
        (lambda url: downgrade(url, "0004"), "jobs", "UPDATE job_inputs SET metadata = metadata"),
        (lambda url: downgrade(url, "0004"), "worker_leases", "UPDATE workers SET commit_seq = commit_seq"),
    ],
)
def test_whoever_locks_as_a_live_process_does_finishes_before_the_migration(
    recorded: str, migrate: Callable[[str], Migration], read: str, write: str
) -> None:
    if migrate is not upgrade:
        upgrade(recorded)

    with ThreadPoolExecutor(1) as thread, psycopg.connect(plain_url(recorded)) as connection:
        connection.execute(f"SELECT FROM {read}")
        migration = thread.submit(migrate, recorded)
        wait_until_somebody_waits_for_a_lock(recorded)
        connection.execute(write)
        connection.commit()

        done = migration.result(timeout=60)

    assert {done.before, done.after} == {"0004", "0013"}


def wait_until_somebody_waits_for_a_lock(url: str) -> None:
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        eventually(lambda: connection.execute(waiting).fetchall(), 30, "a migration that waits for a lock")


def project(rows: list[dict[str, Any]], names: set[str]) -> list[tuple[Any, ...]]:
    """Rows with some of their columns, in one order."""
    return sorted((tuple(row[name] for name in sorted(names)) for row in rows), key=repr)


def test_the_jobs_of_the_old_ledger_are_served_by_the_new_schema(recorded: str) -> None:
    rows = read_all(recorded)
    old = {UUID(row["job_id"]): row for row in rows["jobs"]}
    texts = {UUID(row["job_id"]): row for row in rows["job_inputs"]}
    waiting = [job_id for job_id, row in old.items() if row["state"] == "queued"]
    upgrade(recorded)
    let_time_pass_for_leader_and_not_for_jobs(recorded)
    ledger = Ledger(recorded)
    try:
        results = {job_id: ledger.get(job_id) for job_id in old}
        leased = ledger.lease(ledger.worker("w-new"), *waiting)
    finally:
        ledger.database.dispose()

    for job_id, result in results.items():
        row = old[job_id]
        assert (result.state, result.tenant, result.worker is None) == (
            row["state"],
            row["tenant"],
            row["incarnation"] is None,
        )
    assert {job.job_id for job in leased} == set(waiting)
    for job in leased:
        row, text = old[job.job_id], texts[job.job_id]
        request = read_request(job)
        assert (job.attempt, request.prompt) == (int(row["attempt"]) + 1, text["prompt"])
        assert None not in {getattr(request, name) for name in NEUTRAL}
        assert (request.max_tokens, request.temperature) == (
            int(row["max_tokens"]),
            float(text["temperature"]),
        )


def let_time_pass_for_leader_and_not_for_jobs(url: str) -> None:
    """The dump's instants are of the day it was made."""
    with psycopg.connect(plain_url(url)) as connection:
        connection.execute("UPDATE scheduler_terms SET expires_at = now()")
        connection.execute("UPDATE jobs SET deadline_at = now() + interval '1 day' WHERE state = 'queued'")

"""The migrations lead from nothing to exactly what the models say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from db import Database
from db.database import parse_url
from db.errors import SchemaLocked, UnknownSchema
from db.migrate import alembic_config, main, upgrade
from db.models import Table
from db.records import JobAttempt
from db.repositories.backlog import BacklogRepository
from db.repositories.leases import LeaseRepository
from db.repositories.workers import WorkerRepository
from db.server_check import judge, require_usable_ledger
from tests.integration.db.ledger import POOL, Ledger

CATALOGUE = """
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'storage', relname, '', reloptions::text FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    UNION ALL SELECT 'column', table_name, column_name,
        concat_ws(' ', data_type, is_nullable, regexp_replace(column_default, '::text|::regclass', '', 'g'))
    FROM information_schema.columns WHERE table_schema = 'public'
"""


def catalogue(connection: Connection) -> set[tuple[str, ...]]:
    rows = connection.execute(text(CATALOGUE))
    return {tuple(row) for row in rows if "alembic_version" not in row}


def test_an_upgrade_makes_the_schema_and_a_second_one_changes_nothing(empty_database_url: str) -> None:
    first = upgrade(empty_database_url)
    second = upgrade(empty_database_url)

    assert first.before is None
    assert str(first) == f"schema upgraded from nothing to {first.after}"
    assert str(second) == f"schema is up to date at {first.after}"


def test_two_migrators_at_once_both_succeed_and_one_does_the_work(empty_database_url: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(upgrade, [empty_database_url] * 2))

    assert sorted(migration.before is None for migration in done) == [False, True]


def test_alembic_sees_no_difference_between_models_and_migrations(ledger: Ledger) -> None:
    with ledger.database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})

        assert compare_metadata(context, Table.metadata) == []


def test_constraints_indexes_and_storage_are_those_of_the_models(
    ledger: Ledger, empty_database_url: str
) -> None:
    unmigrated = Database(empty_database_url)
    with unmigrated.transaction() as connection:
        Table.metadata.create_all(connection)
        from_models = catalogue(connection)
    unmigrated.dispose()

    with ledger.database.transaction() as connection:
        from_migrations = catalogue(connection)

    assert from_migrations == from_models
    assert ("storage", "jobs", "") in {row[:3] for row in from_models}


def test_a_downgrade_leaves_nothing_behind(ledger: Ledger) -> None:
    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "base")

        assert catalogue(connection) == set()


def test_leases_move_into_a_table_of_their_own_and_back(ledger: Ledger) -> None:
    ledger.worker("alive")
    ledger.worker("lost", lease_s=0.0)
    ledger.run(LeaseRepository, "lose_worker", "lost")
    before = ledger.sql("SELECT incarnation, expires_at, lost FROM worker_leases ORDER BY incarnation")

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0004")
    moved = ledger.sql("SELECT incarnation, lease_expires_at FROM workers ORDER BY incarnation")
    with ledger.database.transaction() as connection:
        command.upgrade(alembic_config(connection), "0005")

    assert moved == [(row.incarnation, row.expires_at) for row in before]
    assert (
        ledger.sql("SELECT incarnation, expires_at, lost FROM worker_leases ORDER BY incarnation") == before
    )
    assert [row.lost for row in before] == [False, True]


def test_a_device_and_the_reason_of_an_unhealthy_worker_go_with_their_columns(ledger: Ledger) -> None:
    ledger.worker("well")
    ledger.worker("ill", unhealthy="its device failed")

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0007")
    before = ledger.sql("SELECT incarnation, state FROM workers ORDER BY incarnation")
    with ledger.database.transaction() as connection:
        command.upgrade(alembic_config(connection), "head")

    assert before == [("ill", "gone"), ("well", "ready")]
    after = ledger.sql("SELECT state, device, device_memory_bytes, reason FROM workers ORDER BY incarnation")
    assert after == [("gone", None, None, None), ("ready", None, None, None)]


def test_strikes_outlast_the_suspicions_that_go_with_their_columns(ledger: Ledger) -> None:
    job_id, sound = ledger.admitted(2)
    ledger.lease(ledger.worker(host="h"), job_id, sound)
    ledger.run(WorkerRepository, "say_end", "w1", "engine_died", [JobAttempt(job_id, 1)])
    ledger.run(WorkerRepository, "set_state", "w1", "gone")
    ledger.run(LeaseRepository, "lose_worker", "w1")
    assert ledger.sql("SELECT lone_job, lone_deaths FROM worker_hosts") == [(job_id, 1)]

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0010")
    before = ledger.sql("SELECT strikes FROM jobs ORDER BY strikes")
    with ledger.database.transaction() as connection:
        command.upgrade(alembic_config(connection), "head")

    assert before == [(0,), (1,)]
    assert ledger.sql("SELECT DISTINCT suspect_group, losses FROM jobs") == [(None, 0)]
    waiting = ledger.run(BacklogRepository, "queued_after", POOL, 0, 10)
    assert {row.job_id: row.group for row in waiting} == {job_id: job_id, sound: None}
    assert ledger.sql("SELECT host, ended_by FROM workers") == [(None, None)]
    assert ledger.sql("SELECT * FROM worker_hosts") == []


def test_how_long_workers_took_to_start_goes_with_its_column(ledger: Ledger) -> None:
    ledger.worker("w", start_s=2.5)
    assert ledger.run(WorkerRepository, "get", "w").start_s == 2.5

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0018")
        command.upgrade(alembic_config(connection), "head")

    assert ledger.run(WorkerRepository, "get", "w").start_s is None


def test_pauses_and_quotas_go_with_their_tables(ledger: Ledger) -> None:
    ledger.sql("INSERT INTO pauses (kind, pool, name) VALUES ('tenant', '*', 'acme')")
    ledger.sql("INSERT INTO tenant_quotas (tenant, max_queued_jobs) VALUES ('acme', 5)")

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0015")
        command.upgrade(alembic_config(connection), "head")

    assert not ledger.sql("SELECT 1 FROM pauses UNION ALL SELECT 1 FROM tenant_quotas")


def test_a_schema_that_stays_locked_is_an_error_that_says_so(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.migrate.OTHER_MIGRATOR_TIMEOUT_S", 0.1)
    database = Database(empty_database_url)

    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x6C6F72617961})
        with pytest.raises(SchemaLocked, match="let long transactions end"):
            upgrade(empty_database_url)
    database.dispose()


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (
            "CREATE TABLE alembic_version AS SELECT 'd259a9bca9e7' AS version_num",
            r"alembic_version \('d259a9bca9e7'\) is another application's",
        ),
        (
            "CREATE TABLE alembic_version AS VALUES ('0001', 7), ('0002', 8)",
            r"alembic_version \(None, None\) is another application's",
        ),
        ("CREATE TABLE jobs (id int)", r'of the same name .*relation "jobs" already exists'),
    ],
)
def test_a_schema_of_somebody_else_is_left_alone_and_told(
    empty_database_url: str, theirs: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = Database(empty_database_url)
    with database.transaction() as connection:
        connection.execute(text(theirs))

    with pytest.raises(UnknownSchema, match=f"{told}.*: give Lorayard a database of its own$"):
        upgrade(empty_database_url)
    if "alembic_version" in theirs:
        with pytest.raises(SystemExit):
            require_usable_ledger("scheduler", empty_database_url)

    with database.transaction() as connection:
        tables = connection.execute(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
        assert tables.scalar_one() == 1
    said = capsys.readouterr().err
    assert said == "" or re.search(f"^scheduler: the Postgres at .* cannot be used: .*{told}.*\n$", said)
    database.dispose()


def test_a_ledger_of_this_or_another_release_or_none_yet_is_usable_and_an_old_server_is_not(
    database_url: str,
) -> None:
    require_usable_ledger("scheduler", database_url)

    assert judge(180_000, []) is None
    assert judge(140_000, ["9999"]) is None
    assert judge(130_022, []) == "it is Postgres 13: upgrade it to 14 or newer"


def test_the_command_says_what_it_did_and_what_is_missing(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def migrate(url: str | None, *arguments: str) -> tuple[int, str, str]:
        """Run the command's function, a process of its own being needed only once."""
        monkeypatch.delenv("LORAYARD_DATABASE_URL", raising=False)
        if url is not None:
            monkeypatch.setenv("LORAYARD_DATABASE_URL", url)
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    done = subprocess.run(
        [sys.executable, "-m", "db.migrate"],
        env={**os.environ, "LORAYARD_DATABASE_URL": empty_database_url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    nowhere = parse_url(empty_database_url).set(port=1).render_as_string(hide_password=False)
    unset, unreachable = migrate(None), migrate(nowhere)
    back = migrate(empty_database_url, "--down-to", "0004")
    nonsense = migrate(empty_database_url, "--down-to", "9")

    newest = upgrade(empty_database_url).after
    assert (done.returncode, done.stdout) == (0, f"db.migrate: schema upgraded from nothing to {newest}\n")
    assert back[:2] == (0, f"db.migrate: schema downgraded from {newest} to 0004\n")
    assert nonsense[0] == 1
    assert (
        nonsense[2]
        == "db.migrate: the schema cannot go back to '9': Can't locate revision identified by '9'\n"
    )
    assert unset[0] == 2
    assert "LORAYARD_DATABASE_URL" in unset[2]
    assert unreachable[0] == 1
    assert "does not answer" in unreachable[2]
    assert str(parse_url(empty_database_url).password) not in unreachable[2]

"""Who leads: terms, succession, and what a leader that dies or is cut off leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from db.database import MAX_HOLD_MS, Database
from db.errors import DatabaseUnavailable, Deposed
from db.migrate import upgrade
from db.repositories.terms import TermRepository
from lorayard.contract.states import JobState
from lorayard.local import SERVERS, Stack, StackConfig
from scheduler.leader_context import LeaderContext
from scheduler.process import FOLLOWER_POLL_S, RETRY_S, TERM_LOCK_TIMEOUT_MS, TERM_TIMEOUT_MS
from scheduler.settings import SchedulerSettings
from scheduler.term import Taken, TermKeeper
from tests.integration.scheduler.pool_rig import MODEL, PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.polling import eventually
from tests.unit.lorayard.process.signal_bursts import send_burst

ROOT = Path(__file__).parents[3]
TERM_TTL_S: float = SchedulerSettings.model_fields["term_ttl_s"].default


def start_process(rig: PoolRig, ready_file: Path, *, term_ttl_s: float = 1.0) -> subprocess.Popen[bytes]:
    """Run `python -m scheduler` on the rig's servers."""
    ours = {
        "LORAYARD_REDIS_URL": rig.redis_url,
        "LORAYARD_DATABASE_URL": rig.database_url,
        "LORAYARD_MODEL": str(MODEL),
        "LORAYARD_AUTO_TENANTS": "true",
        "LORAYARD_READY_FILE": str(ready_file),
        "LORAYARD_TERM_TTL_S": str(term_ttl_s),
        "LORAYARD_WORKER_LEASE_S": "1.0",
    }
    return subprocess.Popen([sys.executable, "-m", "scheduler"], cwd=ROOT, env=os.environ | ours)


def term(rig: PoolRig) -> int:
    """Read the term from the ledger."""
    rows = rig.sql("SELECT term FROM scheduler_terms")
    return int(rows[0].term) if rows else 0


def leaders(rig: PoolRig, condition: str) -> list[Any]:
    """List the transactions of leaders that are in a state."""
    return rig.sql(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'lorayard-leader %'"
        f" AND datname = current_database() AND {condition}"
    )


def usurp(connection: Connection, pool: str) -> int | None:
    """Take the term from its leader, who may renew it at any time but within this transaction."""
    connection.execute(text("UPDATE scheduler_terms SET expires_at = now()"))
    return TermRepository(connection).take(pool, "usurper", 1.0)


def test_a_second_scheduler_follows_and_takes_over_when_the_first_resigns(rig: PoolRig) -> None:
    with rig.scheduler() as first:
        rig.wait_for(JobState.QUEUED, *rig.submit(3))
        with rig.scheduler() as second:
            ready_file = second.scheduler._settings.ready_file
            assert ready_file is not None
            eventually(ready_file.exists)
            assert term(rig) == 1

            first.stop()
            rig.wait_for(JobState.QUEUED, *rig.submit(3))

            assert term(rig) == 2
            assert rig.redis.get(rig.keys.term) == b"2"


def test_a_leader_whose_term_was_taken_follows_again(rig: PoolRig) -> None:
    with rig.scheduler(term_ttl_s=1.0):
        rig.wait_for(JobState.QUEUED, *rig.submit())

        # Another one becomes leader for a moment, as after a long pause of this leader.
        assert rig.database.run(lambda c: usurp(c, rig.pool)) == 2
        eventually(lambda: term(rig) == 3)

        rig.wait_for(JobState.QUEUED, *rig.submit())


def test_only_a_term_that_ran_out_is_taken_from_a_transaction_that_sits_on_it(rig: PoolRig) -> None:
    hasty = Database(rig.database_url, pool_size=1, lock_timeout_ms=50)

    def take(ttl_s: float) -> int | None:
        keeper = TermKeeper.take(hasty, rig.pool, "next", ttl_s, on_broken=lambda _thread: None)
        return None if keeper is None else keeper.term

    assert take(3600.0) == 1
    with rig.database.transaction() as connection:
        TermRepository(connection).check(rig.pool, 1)
        with pytest.raises(DBAPIError, match="lock timeout"):
            take(3600.0)
    rig.sql("UPDATE scheduler_terms SET expires_at = now()")

    def sit(connection: Connection) -> None:
        TermRepository(connection).check(rig.pool, 1)
        assert take(3600.0) == 2
        connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        rig.database.run(sit)
    hasty.dispose()


def test_time_in_which_a_leader_stood_still_is_no_contact_with_the_ledger(rig: PoolRig) -> None:
    def take(connection: Connection) -> Taken:
        terms = TermRepository(connection)
        return Taken(terms.take(rig.pool, "stopped", 5.0) or 0, terms.ledger_id())

    now, taken = 0.0, rig.database.run(take)
    keeper = TermKeeper(
        rig.database, rig.pool, "stopped", taken, 5.0, on_broken=lambda _thread: None, clock=lambda: now
    )
    now = 4.0
    assert keeper._renew()
    assert (keeper.contact_s(), keeper.num_lapses) == (4.0, 0)

    now = 100.0
    assert (keeper.is_valid, keeper.contact_s()) == (False, 0.0)
    assert keeper._renew()
    now = 103.0
    assert (keeper.is_valid, keeper.contact_s(), keeper.num_lapses) == (True, 3.0, 1)


def test_a_later_term_in_redis_fences_the_acknowledgements_of_an_older_leader(rig: PoolRig) -> None:
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *rig.submit())
        rig.redis.set(rig.keys.term, 99)

        # The ledger says who leads: it steps down, takes the next term and goes on.
        job_ids = rig.submit(2)
        rig.wait_for(JobState.QUEUED, *job_ids)
        eventually(rig.intake_is_empty)

    assert rig.counts() == {"queued": 3}


def test_a_killed_scheduler_process_loses_and_doubles_nothing(rig: PoolRig, tmp_path: Path) -> None:
    submitted = []
    with ScriptedWorker(rig) as worker:
        for round_number in range(3):
            ready_file = tmp_path / f"ready-{round_number}"
            process = start_process(rig, ready_file)
            try:
                eventually(ready_file.exists, 30.0)
                submitted += rig.submit(600)
                eventually(lambda: len(worker.jobs) > 0)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait(10.0)
        with rig.scheduler():
            rig.wait_for(JobState.SUCCEEDED, *submitted, timeout_s=30.0)
            eventually(rig.intake_is_empty)

    assert rig.counts() == {"succeeded": 1800}
    assert [row.n for row in rig.sql("SELECT count(*) AS n FROM attempts WHERE ended = 'succeeded'")] == [
        1800
    ]


def test_a_leader_stopped_inside_a_transaction_is_replaced(rig: PoolRig, tmp_path: Path) -> None:
    ready_files = [tmp_path / f"ready-{number}" for number in range(2)]
    processes = []
    try:
        for file in ready_files:
            processes.append(start_process(rig, file, term_ttl_s=TERM_TTL_S))
            eventually(file.exists, 60.0)
        leader, standby = processes
        with rig.database.transaction() as connection:
            connection.execute(text("LOCK TABLE jobs IN SHARE MODE"))
            job_ids = rig.submit(20)
            eventually(lambda: leaders(rig, "wait_event_type = 'Lock'"), what="an admission that waits")
            leader.send_signal(signal.SIGSTOP)
        eventually(lambda: leaders(rig, "state = 'idle in transaction'"), what="an admission left open")

        # How soon, its settings say: see below. Here a slow machine would be measured as well.
        eventually(lambda: term(rig) == 2, 60.0, "another leader")
        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *job_ids)
            leader.send_signal(signal.SIGCONT)
            more = rig.submit(20)
            rig.wait_for(JobState.SUCCEEDED, *more)
            eventually(rig.intake_is_empty)
        standby.send_signal(signal.SIGTERM)
        assert standby.wait(20.0) == 0
        eventually(lambda: term(rig) == 3, what="the first one's next term")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert rig.counts() == {"succeeded": 40}
    assert [row.n for row in rig.sql("SELECT count(*) AS n FROM attempts")] == [40]


def test_by_its_settings_a_standby_takes_over_within_ten_seconds() -> None:
    # A look just before the term runs out may wait for its lock and evict nobody; the next one evicts.
    looks_s = FOLLOWER_POLL_S + TERM_LOCK_TIMEOUT_MS / 1000 + RETRY_S + TERM_LOCK_TIMEOUT_MS / 1000

    assert TERM_TTL_S + looks_s < 10.0
    assert MAX_HOLD_MS / 1000 < TERM_TTL_S  # what it has locked is free by then
    assert TERM_LOCK_TIMEOUT_MS < TERM_TIMEOUT_MS


def test_nothing_that_an_old_leader_writes_has_an_effect(rig: PoolRig) -> None:
    terms = [rig.database.run(lambda c: TermRepository(c).take(rig.pool, "any", 0.0)) for _ in range(2)]
    ledger = rig.database.run(lambda c: TermRepository(c).ledger_id())
    old, new = (LeaderContext(rig.pool, term or 0, ledger, rig.database, rig.redis) for term in terms)
    new.enter()
    scripts = {path.stem for path in (ROOT / "scheduler").glob("*.lua")} - {"guard", "enter", "adopt"}

    with pytest.raises(Deposed):
        old.transact(lambda c: c.execute(text("INSERT INTO tenants (name) VALUES ('late')")))
    with pytest.raises(Deposed):
        old.enter()
    for script in sorted(scripts):
        with pytest.raises(Deposed):
            old.script(script)(["a", "b"], ["1", "2"])

    assert rig.sql("SELECT 1 FROM tenants") == []
    assert set(rig.redis.keys()) == {rig.keys.term.encode(), rig.keys.ledger.encode()}
    assert rig.redis.get(rig.keys.term) == b"2"


def test_sigterm_resigns_and_exits_cleanly(rig: PoolRig, tmp_path: Path) -> None:
    process = start_process(rig, tmp_path / "ready")
    eventually((tmp_path / "ready").exists, 30.0)

    process.send_signal(signal.SIGTERM)

    assert process.wait(10.0) == 0
    assert rig.sql("SELECT 1 FROM scheduler_terms WHERE expires_at <= now()")


def test_bursts_of_signals_end_three_schedulers(rig: PoolRig, tmp_path: Path) -> None:
    ready_files = [tmp_path / f"ready-{number}" for number in range(3)]
    processes = [start_process(rig, file) for file in ready_files]
    try:
        eventually(lambda: all(file.exists() for file in ready_files), 60.0)

        for process in processes:
            send_burst(process)

        assert [process.wait(20.0) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_next_leader_knows_what_runs_and_what_waits(rig: PoolRig) -> None:
    with rig.scheduler(overcommit_s=0.0) as first, ScriptedWorker(rig, hold) as worker:
        job_ids = rig.submit(12)
        eventually(lambda: len(worker.held) == 8)
        first.stop()

        with rig.scheduler(overcommit_s=0.0):
            rig.wait_for(JobState.QUEUED, *rig.submit())
            worker.script = succeed
            worker.end([end for job in list(worker.jobs) if (end := succeed(job))])
            rig.wait_for(JobState.SUCCEEDED, *job_ids)

    assert {job.attempt for job in worker.jobs} == {1}


def test_restarts_of_both_servers_are_waited_out(state_dir: Path, tmp_path: Path) -> None:
    with Stack(StackConfig(state_dir=state_dir, parts=SERVERS)) as stack:
        upgrade(stack.postgres.url)
        rig = PoolRig(stack.redis.url_of(0), stack.postgres.url, tmp_path)
        with rig.scheduler(), ScriptedWorker(rig) as worker:
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(5))
            worker.die()

            rig.submit(5)
            stack.redis.stop()
            stack.redis.start()
            eventually(lambda: rig.redis.ping() if stack.redis.is_ready() else None, 20.0)
            eventually(lambda: rig.counts().get("queued", 0) + rig.counts().get("leased", 0) == 5, 20.0)

            stack.postgres.stop()
            rig.submit(5)
            stack.postgres.start()
            eventually(stack.postgres.is_ready, 20.0)
            rig.database.dispose()  # a connection that was used a moment ago is not tried first
            eventually(lambda: sum(rig.counts().values()) == 15, 20.0)
            eventually(rig.intake_is_empty)
        rig.close()

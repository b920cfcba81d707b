"""Who leads: terms, succession, and what a leader that dies or is cut off leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from db.migrate import upgrade
from db.repositories.terms import TermRepository
from lorayard.contract.states import JobState
from lorayard.local import SERVERS, Stack, StackConfig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.integration.scheduler.yard import MODEL, Yard
from tests.polling import eventually
from tests.unit.lorayard.process.signal_bursts import send_burst

ROOT = Path(__file__).parents[3]


def start_process(yard: Yard, ready_file: Path) -> subprocess.Popen[bytes]:
    """Run `python -m scheduler` on the yard's servers."""
    ours = {
        "LORAYARD_REDIS_URL": yard.redis_url,
        "LORAYARD_DATABASE_URL": yard.database_url,
        "LORAYARD_MODEL": str(MODEL),
        "LORAYARD_AUTO_TENANTS": "true",
        "LORAYARD_READY_FILE": str(ready_file),
        "LORAYARD_TERM_TTL_S": "1.0",
        "LORAYARD_WORKER_LEASE_S": "1.0",
    }
    return subprocess.Popen([sys.executable, "-m", "scheduler"], cwd=ROOT, env=os.environ | ours)


def term(yard: Yard) -> int:
    """Read the term from the ledger."""
    rows = yard.sql("SELECT term FROM scheduler_terms")
    return int(rows[0].term) if rows else 0


def test_a_second_scheduler_follows_and_takes_over_when_the_first_resigns(yard: Yard) -> None:
    with yard.scheduler() as first:
        yard.wait_for(JobState.QUEUED, *yard.submit(3))
        with yard.scheduler() as second:
            ready_file = second.scheduler._settings.ready_file
            assert ready_file is not None
            eventually(ready_file.exists)
            assert term(yard) == 1

            first.stop()
            yard.wait_for(JobState.QUEUED, *yard.submit(3))

            assert term(yard) == 2
            assert yard.redis.get(yard.keys.term) == b"2"


def test_a_leader_whose_term_was_taken_follows_again(yard: Yard) -> None:
    with yard.scheduler(term_ttl_s=1.0):
        yard.wait_for(JobState.QUEUED, *yard.submit())

        # Another one takes office for a moment, as after a long pause of this leader.
        yard.sql("UPDATE scheduler_terms SET expires_at = now()")
        taken = yard.database.run(lambda c: TermRepository(c).take(yard.pool, "usurper", 1.0))
        assert taken == 2
        eventually(lambda: term(yard) == 3)

        yard.wait_for(JobState.QUEUED, *yard.submit())


def test_a_later_term_in_redis_fences_the_acknowledgements_of_an_older_leader(yard: Yard) -> None:
    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, *yard.submit())
        yard.redis.set(yard.keys.term, 99)

        # The ledger says who leads: it steps down, takes the next term and goes on.
        job_ids = yard.submit(2)
        yard.wait_for(JobState.QUEUED, *job_ids)
        eventually(yard.intake_is_empty)

    assert yard.counts() == {"queued": 3}


def test_a_killed_scheduler_process_loses_and_doubles_nothing(yard: Yard, tmp_path: Path) -> None:
    submitted = []
    with ScriptedWorker(yard) as worker:
        for round_number in range(3):
            ready_file = tmp_path / f"ready-{round_number}"
            process = start_process(yard, ready_file)
            try:
                eventually(ready_file.exists, 30.0)
                submitted += yard.submit(600)
                eventually(lambda: len(worker.jobs) > 0)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait(10.0)
        with yard.scheduler():
            yard.wait_for(JobState.SUCCEEDED, *submitted, timeout_s=30.0)
            eventually(yard.intake_is_empty)

    assert yard.counts() == {"succeeded": 1800}
    assert [row.n for row in yard.sql("SELECT count(*) AS n FROM attempts WHERE ended = 'succeeded'")] == [
        1800
    ]


def test_sigterm_resigns_and_exits_cleanly(yard: Yard, tmp_path: Path) -> None:
    process = start_process(yard, tmp_path / "ready")
    eventually((tmp_path / "ready").exists, 30.0)

    process.send_signal(signal.SIGTERM)

    assert process.wait(10.0) == 0
    assert yard.sql("SELECT 1 FROM scheduler_terms WHERE expires_at <= now()")


def test_bursts_of_signals_end_three_schedulers(yard: Yard, tmp_path: Path) -> None:
    ready_files = [tmp_path / f"ready-{number}" for number in range(3)]
    processes = [start_process(yard, file) for file in ready_files]
    try:
        eventually(lambda: all(file.exists() for file in ready_files), 60.0)

        for process in processes:
            send_burst(process)

        assert [process.wait(20.0) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_next_leader_knows_what_runs_and_what_waits(yard: Yard) -> None:
    with yard.scheduler(overcommit_s=0.0) as first, ScriptedWorker(yard, hold) as worker:
        job_ids = yard.submit(12)
        eventually(lambda: len(worker.held) == 8)
        first.stop()

        with yard.scheduler(overcommit_s=0.0):
            yard.wait_for(JobState.QUEUED, *yard.submit())
            worker.script = succeed
            worker.end([end for job in list(worker.jobs) if (end := succeed(job))])
            yard.wait_for(JobState.SUCCEEDED, *job_ids)

    assert {job.attempt for job in worker.jobs} == {1}


def test_restarts_of_both_servers_are_waited_out(state_dir: Path, tmp_path: Path) -> None:
    with Stack(StackConfig(state_dir=state_dir, parts=SERVERS)) as stack:
        upgrade(stack.postgres.url)
        yard = Yard(stack.redis.url_of(0), stack.postgres.url, tmp_path)
        with yard.scheduler(), ScriptedWorker(yard) as worker:
            yard.wait_for(JobState.SUCCEEDED, *yard.submit(5))
            worker.die()

            yard.submit(5)
            stack.redis.stop()
            stack.redis.start()
            eventually(lambda: yard.redis.ping() if stack.redis.is_ready() else None, 20.0)
            eventually(lambda: yard.counts().get("queued", 0) + yard.counts().get("leased", 0) == 5, 20.0)

            stack.postgres.stop()
            yard.submit(5)
            stack.postgres.start()
            eventually(stack.postgres.is_ready, 20.0)
            eventually(lambda: sum(yard.counts().values()) == 15, 20.0)
            eventually(yard.intake_is_empty)
        yard.close()

"""What a long past costs the present: `python -m benchmarks.retention [--jobs N] [--write NAME]`.

One Postgres holds two ledgers, one empty and one with a million finished jobs. Both are given the same work
by turns: admission, dispatch, commits, and deleting what is old.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import text

from benchmarks.machine import describe_run, load_average
from db import Database
from db.migrate import upgrade
from db.records import DeletedBatch, EndedAttempt, NewJob, WorkerLimits
from db.repositories.admission import AdmissionRepository
from db.repositories.finish import FinishRepository
from db.repositories.leases import LeaseRepository
from db.repositories.retention import RetentionRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.ids import payload_sha256, uuid7
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from lorayard.local import SERVERS, Stack, StackConfig, plain_url
from scheduler.leader import RETENTION_PAUSE_S
from scheduler.retention import BATCH_JOBS

RESULTS = Path(__file__).parent / "results"
POOL = "pool"
BLOCK_JOBS = 500
BATCH = 16
DAY_S = 86_400.0
STEPS = ("admission", "dispatch", "commit", "clean-up")
LIMITS = WorkerLimits(
    max_num_seqs=32, num_kv_blocks=1000, block_size=16, max_model_len=2048, max_loras=4, max_lora_rank=64
)

# Jobs that ended from 60 days ago on, the ids in the order of their making as UUIDv7s are.
_FILL = """
    CREATE TEMPORARY TABLE past AS
    SELECT uuidv7(make_interval(secs => (n - :jobs) * 5.0)) AS job_id, n % 10 = 0 AS has_callback,
        now() - interval '31 days' + make_interval(secs => (n - :jobs) * 2.5) AS ended_at
    FROM generate_series(1, :jobs) AS n
"""
_FILL_TABLES = """
    INSERT INTO jobs (job_id, pool, tenant, priority, state, attempt, incarnation, reply_to, has_callback,
        est_prompt_tokens, max_tokens, submitted_at, leased_at, ended_at, prompt_tokens, completion_tokens,
        queue_ms, run_ms, finish_reason)
    SELECT job_id, 'pool', 'acme', 1, 'succeeded', 1, 'w-old', 'client', has_callback, 30, 128, ended_at,
        ended_at, ended_at, 30, 60, 10, 900, 'stop' FROM past ORDER BY ended_at;
    INSERT INTO job_inputs (job_id, request, metadata, submission_id)
    SELECT job_id, json_build_object('prompt', repeat('what was asked ', 10)), '{}', job_id
    FROM past ORDER BY ended_at;
    INSERT INTO job_outputs SELECT job_id, repeat('what came of it ', 15) FROM past ORDER BY ended_at;
    INSERT INTO attempts (job_id, attempt, incarnation, ended, device_ms, ended_at)
    SELECT job_id, 1, 'w-old', 'succeeded', 900, ended_at FROM past ORDER BY ended_at;
    INSERT INTO webhook_deliveries (job_id, tenant, url, host, event_type, state, ended_at)
    SELECT job_id, 'acme', 'https://example.com/', 'example.com', 'job.succeeded', 'delivered', ended_at
    FROM past WHERE has_callback ORDER BY ended_at;
    DROP TABLE past;
"""


class Side:
    """One of the two ledgers, with a leader's and a worker's part."""

    def __init__(self, stack: Stack, name: str) -> None:
        _execute(stack.postgres.url, f"CREATE DATABASE {name}")
        self.url = stack.postgres.url_of(name)
        upgrade(self.url)
        self.database = Database(self.url, pool_size=1, statement_timeout_ms=0)
        self.term = self.database.run(lambda c: TermRepository(c).take(POOL, "leader", 86_400.0)) or 0
        self.database.run(lambda c: WorkerRepository(c).register("w", POOL, "host", LIMITS, 86_400.0))
        self.seq = 0
        self.times_ms: dict[str, list[float]] = {step: [] for step in STEPS}
        self.cpu_ms: dict[str, list[float]] = {step: [] for step in STEPS}

    def fill(self, jobs: int) -> None:
        """Give it a past."""
        with self.database.transaction() as connection:
            connection.execute(text(_FILL), {"jobs": jobs})
            for statement in _FILL_TABLES.split(";")[:-1]:
                connection.execute(text(statement))

    def rebuild_index(self) -> float:
        """Build the index on `ended_at` anew, as the migration does; returns the seconds it took."""
        _execute(self.url, "DROP INDEX ix_jobs_ended")
        started = time.perf_counter()
        _execute(self.url, "CREATE INDEX ix_jobs_ended ON jobs (pool, ended_at) WHERE ended_at IS NOT NULL")
        return time.perf_counter() - started

    def settle(self) -> None:
        """Leave nothing for autovacuum to do in the middle of a round."""
        _execute(self.url, "VACUUM (ANALYZE)")
        _execute(self.url, "CHECKPOINT")

    def megabytes(self) -> float:
        """Tell the size on disk."""
        with self.database.transaction() as connection:
            size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        return float(size) / 1e6

    def round(self) -> None:
        """Admit, dispatch and commit one block of jobs, and delete one block of old ones."""
        jobs = [_job() for _ in range(BLOCK_JOBS)]
        self._time("admission", lambda c: AdmissionRepository(c).admit(POOL, jobs))
        leased = self._time("dispatch", lambda c: self._dispatch(c, jobs))
        self.seq += 1
        ends = [_end(job) for job in leased]
        self._time("commit", lambda c: FinishRepository(c).finish("w", self.seq, ends))
        done: DeletedBatch = self._time(
            "clean-up", lambda c: RetentionRepository(c).delete_jobs(POOL, 30 * DAY_S, BATCH_JOBS)
        )
        assert done.deleted >= BATCH_JOBS, done

    def _dispatch(self, connection: Any, jobs: list[NewJob]) -> list[BatchJob]:
        leases = LeaseRepository(connection)
        ids = [job.job_id for job in jobs]
        return [
            job
            for start in range(0, len(ids), BATCH)
            for job in leases.lease(POOL, "w", ids[start : start + BATCH], term=self.term)
        ]

    def _time(self, step: str, work: Callable[[Any], Any]) -> Any:
        with self.database.transaction() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        started, spent_ms = time.perf_counter(), _processor_ms(pid)
        done = self.database.run(work)
        self.times_ms[step].append((time.perf_counter() - started) * 1000)
        self.cpu_ms[step].append(_processor_ms(pid) - spent_ms)
        return done


def _processor_ms(pid: int) -> float:
    """Read how long a process has run: what other people's processes take does not count."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        connection.execute(statement.encode())


def _job() -> NewJob:
    spec = JobSpec(prompt="what is asked " * 10, tenant="acme")
    return NewJob(uuid7(), uuid4(), spec, payload_sha256(spec, "tiny"), "tiny", "client", None, 30, 5.0)


def _end(job: BatchJob) -> EndedAttempt:
    return EndedAttempt(
        job.job_id,
        job.attempt,
        JobState.SUCCEEDED,
        output="what comes of it " * 15,
        finish_reason="stop",
        prompt_tokens=30,
        completion_tokens=60,
        queue_ms=10.0,
        run_ms=900.0,
        device_ms=900.0,
    )


def measure(stack: Stack, jobs: int, rounds: int) -> tuple[Side, Side, float]:
    """Let both ledgers take turns; returns the empty one, the full one, and the index's seconds."""
    empty, full = Side(stack, "empty_ledger"), Side(stack, "full_ledger")
    started = time.perf_counter()
    full.fill(jobs)
    print(f"filled with {jobs:,} jobs in {time.perf_counter() - started:.0f} s, {full.megabytes():.0f} MB")
    index_s = full.rebuild_index()
    # What the empty one has to delete comes just before each of its rounds.
    for number in range(rounds + 2):
        empty.fill(BATCH_JOBS)
        if number < 2:
            empty.settle()
            full.settle()
        for side in (empty, full) if number % 2 else (full, empty):
            side.round()
    return empty, full, index_s


def report(empty: Side, full: Side, index_s: float, jobs: int, facts: dict[str, str]) -> str:
    """Lay the figures out as markdown."""
    rows = [
        "| step | empty | full | full / empty | Postgres' processor time, empty | full | full / empty |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in STEPS:
        cells = []
        for ours, theirs in (
            (empty.times_ms[step], full.times_ms[step]),
            (empty.cpu_ms[step], full.cpu_ms[step]),
        ):
            # The first two rounds warm caches and plans.
            one, other = statistics.median(ours[2:]), statistics.median(theirs[2:])
            cells += [f"{one:.1f} ms", f"{other:.1f} ms", f"{other / one:.2f}"]
        rows.append(f"| {step} | {' | '.join(cells)} |")
    cleanup_ms = statistics.median(full.times_ms["clean-up"][2:])
    facts = facts | {
        "rounds": f"{len(full.times_ms['admission']) - 2}, {BLOCK_JOBS} jobs each, by turns; medians",
        "the full ledger": f"{full.megabytes():.0f} MB at the end",
        "its index on `ended_at`": f"built in {index_s:.2f} s",
    }
    reading = (
        f"Dispatch leases {BATCH} jobs at a time; commits are one group. A leader that has much to delete "
        f"takes {BATCH_JOBS} jobs each {RETENTION_PAUSE_S:g} s, "
        f"{cleanup_ms / (1000 * RETENTION_PAUSE_S + cleanup_ms):.1%} of its loop's time."
    )
    shown = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    title = f"# A ledger with {jobs:,} finished jobs beside an empty one"
    return "\n\n".join([title, shown, "\n".join(rows), reading]) + "\n"


def main() -> int:
    """Run and print, and write the report if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", metavar="NAME", help="keep the report in benchmarks/results")
    options = parser.parse_args()
    facts = describe_run(["Postgres 18"], num_threads=1)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="lorayard-bench-") as folder:
        Path(folder).chmod(0o711)
        with Stack(StackConfig(state_dir=Path(folder) / "state", parts=SERVERS, durable=False)) as stack:
            empty, full, index_s = measure(stack, options.jobs, options.rounds)
            facts["load before and after"] = f"{before}, {load_average()}"
            text_ = report(empty, full, index_s, options.jobs, facts)
            for side in (empty, full):
                side.database.dispose()
    print(text_)
    if options.write:
        (RESULTS / f"{options.write}.md").write_text(text_)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Jobs: what is queued and running, what became of the rest, and ends that need no worker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from db.records import CancelOutcome, FinishedJob, JobStatus
from db.repositories.endings import write_endings
from db.repositories.results import RESULT_COLUMNS, RESULT_TABLES, fetch_rows, to_result
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState

_LOCK_ONE = text("SELECT state, incarnation FROM jobs WHERE job_id = :job_id FOR UPDATE")

_WISH = text("INSERT INTO cancellations (job_id) VALUES (:job_id) ON CONFLICT (job_id) DO NOTHING")

_CANCEL = text("""
    UPDATE jobs
    SET state = 'cancelled', ended_at = now(),
        queue_ms = 1000 * extract(epoch FROM now() - submitted_at)::float8
    WHERE job_id = :job_id AND state = 'queued'
    RETURNING job_id
""")

_EXPIRE = text("""
    WITH due AS MATERIALIZED (
        SELECT job_id FROM jobs
        WHERE pool = :pool AND state = 'queued' AND deadline_at IS NOT NULL AND deadline_at <= now()
        ORDER BY deadline_at LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs j
    SET state = 'expired', ended_at = now(), error_code = 'deadline_passed',
        queue_ms = 1000 * extract(epoch FROM now() - submitted_at)::float8
    FROM due WHERE j.job_id = due.job_id AND j.state = 'queued'
    RETURNING j.job_id, extract(epoch FROM deadline_at - submitted_at)::float8 AS deadline_s
""")

_EXPIRE_INFEASIBLE = text("""
    WITH hopeless AS MATERIALIZED (
        SELECT job_id FROM jobs
        WHERE job_id = ANY(CAST(:ids AS uuid[])) AND state = 'queued' AND deadline_at IS NOT NULL
        ORDER BY job_id FOR UPDATE
    )
    UPDATE jobs j
    SET state = 'expired', ended_at = now(),
        error_code = CASE WHEN deadline_at <= now() THEN 'deadline_passed' ELSE 'deadline_infeasible' END,
        queue_ms = 1000 * extract(epoch FROM now() - submitted_at)::float8
    FROM hopeless WHERE j.job_id = hopeless.job_id
    RETURNING j.job_id, extract(epoch FROM deadline_at - submitted_at)::float8 AS deadline_s
""")

_FAIL = text("""
    WITH given_up AS MATERIALIZED (
        SELECT job_id FROM jobs WHERE job_id = ANY(CAST(:ids AS uuid[])) AND state = 'queued'
        ORDER BY job_id FOR UPDATE
    )
    UPDATE jobs j
    SET state = 'failed', ended_at = now(), error_code = :code,
        queue_ms = 1000 * extract(epoch FROM now() - submitted_at)::float8
    FROM given_up WHERE j.job_id = given_up.job_id
    RETURNING j.job_id
""")

_FORGET = text("""
    DELETE FROM cancellations c
    WHERE c.requested_at < now() - make_interval(secs => :older_than_s)
        AND NOT EXISTS (SELECT FROM jobs j WHERE j.job_id = c.job_id AND j.ended_at IS NULL)
""")

_DEPTH = text("SELECT count(*) FROM jobs WHERE pool = :pool AND state = 'queued'")

_COUNTS = text("SELECT state, count(*) AS jobs FROM jobs WHERE pool = :pool GROUP BY state")

_LEFT = text("""
    SELECT job_id FROM job_keys k
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND NOT EXISTS (SELECT FROM jobs j WHERE j.job_id = k.job_id)
""")

_RECENT = text(f"""
    SELECT {RESULT_COLUMNS} FROM {RESULT_TABLES}
    WHERE (CAST(:pool AS text) IS NULL OR j.pool = :pool)
        AND (CAST(:state AS text) IS NULL OR j.state = :state)
        AND (CAST(:tenant AS text) IS NULL OR j.tenant = :tenant)
    ORDER BY j.admit_seq DESC LIMIT :limit
""")  # noqa: S608


class JobRepository:
    """Jobs by id, and the ends that come to them while they wait."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, job_id: UUID) -> JobResult | None:
        """Read all that is known of a job, its output and error included."""
        status = self.status(job_id)
        return status.result if status else None

    def status(self, job_id: UUID) -> JobStatus | None:
        """Read a job with its attempt and the client that it answers to."""
        for row in fetch_rows(self._connection, [job_id]):
            return JobStatus(row.attempt, row.reply_to, to_result(row))
        return None

    def left(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Tell which jobs have left the ledger although their key is remembered."""
        if not job_ids:
            return set()
        return set(self._connection.execute(_LEFT, {"ids": list(job_ids)}).scalars())

    def cancel(self, job_id: UUID, *, may_come: bool = True) -> CancelOutcome:
        """Record the wish; end a queued job at once, and name the worker of one that runs.

        A job that is not there may still come, unless the caller knows better: then it is ended as it does.
        The row is locked before the wish is written, so that whoever gives the job back sees the wish.
        """
        found = self._connection.execute(_LOCK_ONE, {"job_id": job_id}).one_or_none()
        if found is None and not may_come:
            return CancelOutcome(None)
        self._connection.execute(_WISH, {"job_id": job_id})
        if found is None:
            return CancelOutcome(None)
        if found.state == JobState.QUEUED:
            self._connection.execute(_CANCEL, {"job_id": job_id})
            return CancelOutcome(JobState.CANCELLED, write_endings(self._connection, [job_id])[0])
        running = found.state == JobState.LEASED
        return CancelOutcome(JobState(found.state), incarnation=found.incarnation if running else None)

    def expire_due(self, pool: str, limit: int) -> list[FinishedJob]:
        """End queued jobs whose deadline has passed, the longest overdue first."""
        return self._expired(self._connection.execute(_EXPIRE, {"pool": pool, "limit": limit}).all())

    def expire_infeasible(self, job_ids: Collection[UUID]) -> list[FinishedJob]:
        """End queued jobs that can have no token before their deadline; others are passed over."""
        return self._expired(self._connection.execute(_EXPIRE_INFEASIBLE, {"ids": list(job_ids)}).all())

    def _expired(self, rows: Sequence[Row[Any]]) -> list[FinishedJob]:
        messages = [
            f"no token within {row.deadline_s:g} s of submission: allow more time or add workers"
            for row in rows
        ]
        return write_endings(self._connection, [row.job_id for row in rows], messages)

    def fail_queued(self, job_ids: Collection[UUID], code: str, message: str) -> list[FinishedJob]:
        """End queued jobs that no worker can be given; others among the ids are passed over."""
        rows = self._connection.execute(_FAIL, {"ids": list(job_ids), "code": code}).all()
        return write_endings(self._connection, [row.job_id for row in rows], [message] * len(rows))

    def forget_cancellations(self, older_than_s: float) -> int:
        """Drop old wishes of jobs that have ended or never came; returns how many."""
        return self._connection.execute(_FORGET, {"older_than_s": older_than_s}).rowcount

    def depth(self, pool: str) -> int:
        """Count the queued jobs."""
        return int(self._connection.execute(_DEPTH, {"pool": pool}).scalar_one())

    def counts(self, pool: str) -> dict[JobState, int]:
        """Count the jobs in each state; reads the whole table, so not for a loop."""
        rows = self._connection.execute(_COUNTS, {"pool": pool})
        return dict.fromkeys(JobState, 0) | {JobState(row.state): row.jobs for row in rows}

    def recent(
        self,
        pool: str | None = None,
        limit: int = 20,
        state: JobState | None = None,
        tenant: str | None = None,
    ) -> list[JobResult]:
        """List jobs, the last admitted first."""
        rows = self._connection.execute(
            _RECENT, {"pool": pool, "limit": limit, "state": state and state.value, "tenant": tenant}
        )
        return [to_result(row) for row in rows]

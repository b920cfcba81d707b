"""Reading what is known of jobs, as results to announce."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from db.records import FinishedJob
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

RESULT_COLUMNS = """
    j.job_id, j.state, j.tenant, j.adapter, j.revision, j.finish_reason, j.prompt_tokens,
    j.completion_tokens, j.attempt, coalesce(w.hostname, j.incarnation) AS worker, j.queue_ms, j.run_ms,
    j.error_code, o.output, o.error_message, o.sampling, i.metadata, j.reply_to, j.ended_at, j.stream,
    r.warnings
"""

RESULT_TABLES = """
    jobs j
    LEFT JOIN job_inputs i ON i.job_id = j.job_id
    LEFT JOIN job_outputs o ON o.job_id = j.job_id
    LEFT JOIN workers w ON w.incarnation = j.incarnation
    LEFT JOIN adapter_revisions r ON r.pool = j.pool AND r.digest = j.revision
"""

_BY_IDS = text(
    f"SELECT {RESULT_COLUMNS} FROM {RESULT_TABLES} WHERE j.job_id = ANY(CAST(:ids AS uuid[]))"  # noqa: S608
)


def fetch_finished(connection: Connection, job_ids: Sequence[UUID]) -> list[FinishedJob]:
    """Read jobs as they stand in this transaction, in the order asked for; unknown ids are left out."""
    rows = {row.job_id: row for row in fetch_rows(connection, job_ids)}
    return [to_finished(rows[job_id]) for job_id in job_ids if job_id in rows]


def fetch_rows(connection: Connection, job_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Read the result columns of jobs, in no order."""
    ids = list(job_ids)
    return connection.execute(_BY_IDS, {"ids": ids}).all() if ids else []


def to_finished(row: Row[Any]) -> FinishedJob:
    """Make the record of one row of the result columns."""
    state = JobState(row.state)
    return FinishedJob(row.job_id, row.attempt, state, to_result(row), row.reply_to, row.stream)


def to_result(row: Row[Any]) -> JobResult:
    """Make the typed result of one row of the result columns."""
    error = JobError(code=row.error_code, message=row.error_message or "") if row.error_code else None
    return JobResult(
        job_id=row.job_id,
        state=JobState(row.state),
        tenant=row.tenant,
        adapter=row.adapter,
        revision=row.revision,
        output=row.output,
        finish_reason=row.finish_reason,
        sampling=row.sampling,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        attempt=row.attempt,
        worker=row.worker,
        queue_ms=row.queue_ms,
        run_ms=row.run_ms,
        error=error,
        metadata=row.metadata or {},
        warnings=tuple(row.warnings or ()),
    )

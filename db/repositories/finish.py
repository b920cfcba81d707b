"""Finish: what a worker has done becomes the truth, once, or counts as waste."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from db.arrays import array_literal
from db.errors import UnknownWorker
from db.records import EndedAttempt, FinishedJob
from db.repositories.endings import lock_jobs, write_outbox
from db.repositories.results import fetch_finished
from lorayard.contract.result import JobResult
from lorayard.contract.states import TRANSITIONS, JobState
from lorayard.contract.trusted import trusted

FINISH_STATES: Final = TRANSITIONS[JobState.LEASED] - {JobState.DEAD}
"""What a worker may say of a job; only the leader, counting crashes, calls one dead."""

_OPEN_GROUP = text("""
    UPDATE workers SET commit_seq = :seq
    WHERE incarnation = :incarnation AND commit_seq < :seq
    RETURNING pool, hostname
""")

_WRITTEN_BEFORE = text("""
    SELECT j.job_id
    FROM jobs j JOIN unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[])) AS e(job_id, attempt)
        ON e.job_id = j.job_id AND e.attempt = j.attempt
    WHERE j.incarnation = :incarnation AND j.ended_at IS NOT NULL
""")

_IS_KNOWN = text("SELECT FROM workers WHERE incarnation = :incarnation")

_FINISH = text("""
    WITH reported AS (
        SELECT * FROM unnest(
            CAST(:job_id AS uuid[]), CAST(:attempt AS integer[]), CAST(:state AS text[]),
            CAST(:output AS text[]), CAST(:finish_reason AS text[]), CAST(:sampling AS text[]),
            CAST(:prompt_tokens AS integer[]), CAST(:completion_tokens AS integer[]),
            CAST(:queue_ms AS float8[]), CAST(:run_ms AS float8[]), CAST(:device_ms AS float8[]),
            CAST(:error_code AS text[]), CAST(:error_message AS text[]), CAST(:revision AS text[]),
            CAST(:loads AS integer[]), CAST(:load_ms AS float8[]), CAST(:hits AS integer[]),
            CAST(:evictions AS integer[])
        ) AS r(
            job_id, attempt, state, output, finish_reason, sampling, prompt_tokens, completion_tokens,
            queue_ms, run_ms, device_ms, error_code, error_message, revision, loads, load_ms, hits, evictions
        )
    ), ended AS (
        SELECT r.*, CASE WHEN r.state = 'queued' AND c.job_id IS NOT NULL THEN 'cancelled' ELSE r.state END
            AS becomes
        FROM reported r LEFT JOIN cancellations c ON c.job_id = r.job_id
    ), done AS (
        UPDATE jobs j
        SET state = e.becomes,
            incarnation = CASE WHEN e.becomes <> 'queued' THEN j.incarnation END,
            leased_at = CASE WHEN e.becomes <> 'queued' THEN j.leased_at END,
            ended_at = CASE WHEN e.becomes <> 'queued' THEN now() END,
            revision = coalesce(e.revision, j.revision),
            prompt_tokens = CASE WHEN e.becomes <> 'queued' THEN e.prompt_tokens ELSE 0 END,
            completion_tokens = CASE WHEN e.becomes <> 'queued' THEN e.completion_tokens ELSE 0 END,
            queue_ms = CASE WHEN e.becomes <> 'queued' THEN e.queue_ms END,
            run_ms = CASE WHEN e.becomes <> 'queued' THEN e.run_ms END,
            finish_reason = CASE WHEN e.becomes <> 'queued' THEN e.finish_reason END,
            error_code = CASE WHEN e.becomes <> 'queued' THEN e.error_code END
        FROM ended e
        WHERE j.job_id = e.job_id AND j.attempt = e.attempt
            AND j.state = 'leased' AND j.incarnation = :incarnation
        RETURNING j.job_id, j.attempt, j.state, j.tenant, j.adapter, j.revision, j.reply_to, j.stream,
            j.has_callback
    ), outputs AS (
        INSERT INTO job_outputs (job_id, output, error_message, sampling)
        SELECT e.job_id, e.output, e.error_message, CAST(e.sampling AS json)
        FROM done d JOIN ended e ON e.job_id = d.job_id AND e.attempt = d.attempt
        WHERE d.state <> 'queued' AND num_nonnulls(e.output, e.error_message, e.sampling) > 0
    ), tried AS (
        INSERT INTO attempts (
            job_id, attempt, incarnation, ended, revision, prompt_tokens, completion_tokens, queue_ms, run_ms,
            device_ms, error_code
        )
        SELECT e.job_id, e.attempt, :incarnation,
            CASE WHEN d.state = 'queued' THEN 'released' ELSE d.state END, e.revision, e.prompt_tokens,
            e.completion_tokens, e.queue_ms, e.run_ms, e.device_ms, e.error_code
        FROM done d JOIN ended e ON e.job_id = d.job_id AND e.attempt = d.attempt
    ), spent AS (
        SELECT j.tenant, coalesce(j.adapter, '') AS adapter,
            coalesce(d.state, 'queued') <> 'queued' AS counts,
            coalesce(d.state, 'queued') IN ('queued', 'cancelled') AS wasted,
            d.state = 'failed' AS failed, e.*
        FROM ended e
        JOIN jobs j ON j.job_id = e.job_id
        LEFT JOIN done d ON d.job_id = e.job_id AND d.attempt = e.attempt
    ), parts AS (
        SELECT tenant, adapter, CAST(counts AS integer) AS jobs,
            CASE WHEN counts THEN prompt_tokens ELSE 0 END AS prompt_tokens,
            CASE WHEN counts THEN completion_tokens ELSE 0 END AS completion_tokens,
            CASE WHEN wasted THEN 0 ELSE device_ms END AS device_ms,
            CASE WHEN counts THEN coalesce(queue_ms, 0) ELSE 0 END AS queue_ms,
            loads, load_ms, hits, evictions, CASE WHEN failed THEN 1 ELSE 0 END AS failures,
            CASE WHEN wasted THEN device_ms ELSE 0 END AS wasted_device_ms
        FROM spent
    ), used AS (
        INSERT INTO usage_deltas (
            incarnation, seq, part, pool, tenant, adapter, jobs, prompt_tokens, completion_tokens, device_ms,
            queue_ms, loads, load_ms, hits, evictions, failures, wasted_device_ms
        )
        SELECT :incarnation, :seq, row_number() OVER (ORDER BY tenant, adapter), :pool, tenant, adapter,
            sum(jobs), sum(prompt_tokens), sum(completion_tokens), sum(device_ms), sum(queue_ms), sum(loads),
            sum(load_ms), sum(hits), sum(evictions), sum(failures), sum(wasted_device_ms)
        FROM parts GROUP BY tenant, adapter
    )
    SELECT d.*, i.metadata, r.warnings
    FROM done d
    LEFT JOIN job_inputs i ON i.job_id = d.job_id
    LEFT JOIN adapter_revisions r ON r.pool = :pool AND r.digest = d.revision
""")


class FinishRepository:
    """Ends jobs as their workers report them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def finish(self, incarnation: str, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Write one commit group; returns the jobs that it moved, in the order given.

        Only a job still leased to this incarnation at this attempt moves; of any other the device time is
        added to the wasted, and nothing else. `seq` grows with each group: a group that comes again, because
        its commit was of unknown fate, changes nothing and answers its ended jobs once more.
        """
        reports = list({(report.job_id, report.attempt): report for report in reversed(ended)}.values())[::-1]
        _check(reports)
        opened = self._connection.execute(_OPEN_GROUP, {"incarnation": incarnation, "seq": seq}).one_or_none()
        if opened is None:
            return self.read_back(incarnation, reports)
        if not reports:
            return []
        lock_jobs(self._connection, {report.job_id for report in reports})
        values = {"incarnation": incarnation, "seq": seq, "pool": opened.pool}
        rows = self._connection.execute(_FINISH, values | _columns(reports)).all()
        if with_callback := [row.job_id for row in rows if row.has_callback]:
            write_outbox(self._connection, with_callback)
        moved = {(row.job_id, row.attempt): row for row in rows}
        return [
            _finished(moved[report.job_id, report.attempt], report, opened.hostname)
            for report in reports
            if (report.job_id, report.attempt) in moved
        ]

    def read_back(self, incarnation: str, reports: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Read those that the ledger has as ended by this incarnation at this attempt already."""
        if self._connection.execute(_IS_KNOWN, {"incarnation": incarnation}).one_or_none() is None:
            raise UnknownWorker(
                f"incarnation {incarnation} is not registered: register it before it finishes jobs"
            )
        before = self._connection.execute(
            _WRITTEN_BEFORE,
            {
                "incarnation": incarnation,
                "ids": array_literal(report.job_id for report in reports),
                "attempts": array_literal(report.attempt for report in reports),
            },
        )
        written = set(before.scalars())
        return fetch_finished(self._connection, [r.job_id for r in reports if r.job_id in written])


def _finished(row: Row[Any], report: EndedAttempt, hostname: str) -> FinishedJob:
    """Tell of a job what reading it anew would tell: the row as it is now, and what was reported of it."""
    state = JobState(row.state)
    told = {
        "job_id": row.job_id,
        "state": state,
        "tenant": row.tenant,
        "adapter": row.adapter,
        "revision": row.revision,
        "attempt": row.attempt,
        "metadata": row.metadata or {},
        "warnings": tuple(row.warnings or ()),
    }
    result = trusted(JobResult, told | (_outcome(report, hostname) if state.is_terminal else _NO_OUTCOME))
    return FinishedJob(row.job_id, row.attempt, state, result, row.reply_to, row.stream)


def _outcome(report: EndedAttempt, hostname: str) -> dict[str, Any]:
    return {
        "output": report.output,
        "finish_reason": report.finish_reason,
        "sampling": None if report.sampling is None else dict(report.sampling),
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "worker": hostname,
        "queue_ms": report.queue_ms,
        "run_ms": report.run_ms,
        "error": report.error,
    }


_NO_OUTCOME: Final = dict.fromkeys(_outcome(EndedAttempt(UUID(int=0), 0, JobState.QUEUED), ""), None) | {
    "prompt_tokens": 0,
    "completion_tokens": 0,
}
"""Of a job that went back."""


def _check(reports: Sequence[EndedAttempt]) -> None:
    for report in reports:
        if report.state not in FINISH_STATES:
            raise ValueError(
                f"job {report.job_id} was reported {report.state}: "
                f"a worker may say {', '.join(sorted(FINISH_STATES))}"
            )


_RENDERED = ("error", "sampling", "state")


def _columns(reports: Sequence[EndedAttempt]) -> dict[str, str]:
    """Turn reports into the arrays that unnest() takes."""
    names = [field.name for field in fields(EndedAttempt) if field.name not in _RENDERED]
    columns = {name: array_literal(getattr(report, name) for report in reports) for name in names}
    return columns | {
        "state": array_literal(report.state.value for report in reports),
        "sampling": array_literal(
            None if report.sampling is None else json.dumps(dict(report.sampling)) for report in reports
        ),
        "error_code": array_literal(report.error.code if report.error else None for report in reports),
        "error_message": array_literal(report.error.message if report.error else None for report in reports),
    }

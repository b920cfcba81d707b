"""Admission: the one way into the ledger, idempotent by the job's name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import Connection, text

from db.arrays import array_literal
from db.records import Admitted, NewJob, RejectedEntry
from db.repositories.adapters import AdapterRepository
from db.repositories.endings import write_endings
from lorayard.contract.ids import is_same_payload
from lorayard.contract.job import PRIORITIES
from lorayard.contract.states import JobState

_KEYS = text("""
    INSERT INTO job_keys (job_id, payload_sha256, pool)
    SELECT job_id, sha256, :pool
    FROM unnest(CAST(:ids AS uuid[]), CAST(:sha256 AS text[])) AS k(job_id, sha256)
    ORDER BY job_id
    ON CONFLICT (job_id) DO NOTHING
    RETURNING job_id
""")

# A job without a key has no row in `job_keys`; those of releases before have.
_TAKEN = text("""
    SELECT job_id FROM jobs WHERE job_id = ANY(CAST(:ids AS uuid[]))
    UNION SELECT job_id FROM job_keys WHERE job_id = ANY(CAST(:ids AS uuid[]))
""")

_KNOWN = text("""
    SELECT n.id AS job_id, k.payload_sha256, j.state, i.submission_id, coalesce(j.pool, k.pool) AS pool
    FROM unnest(CAST(:ids AS uuid[])) AS n(id)
    LEFT JOIN job_keys k ON k.job_id = n.id
    LEFT JOIN jobs j ON j.job_id = n.id
    LEFT JOIN job_inputs i ON i.job_id = n.id
""")

# INSERT ... SELECT ... ORDER BY draws the sequence in that order, so `admit_seq` follows the stream.
_JOBS = text("""
    INSERT INTO jobs (
        job_id, pool, tenant, adapter, revision, priority, state, reply_to, has_callback, est_prompt_tokens,
        max_tokens, request_bytes, stream, submitted_at, deadline_at, ended_at, error_code
    )
    SELECT n.job_id, :pool, n.tenant, n.adapter, n.revision, n.priority,
        CASE WHEN n.error_code IS NOT NULL THEN 'rejected'
             WHEN c.job_id IS NOT NULL THEN 'cancelled' ELSE 'queued' END,
        n.reply_to, n.has_callback, n.est_prompt_tokens, n.max_tokens, n.request_bytes, n.stream,
        now() - make_interval(secs => n.waited_s),
        now() + make_interval(secs => n.deadline_s - n.waited_s),
        CASE WHEN n.error_code IS NOT NULL OR c.job_id IS NOT NULL THEN now() END,
        n.error_code
    FROM unnest(
        CAST(:job_id AS uuid[]), CAST(:tenant AS text[]), CAST(:adapter AS text[]), CAST(:revision AS text[]),
        CAST(:priority AS smallint[]), CAST(:reply_to AS text[]), CAST(:has_callback AS boolean[]),
        CAST(:est_prompt_tokens AS integer[]), CAST(:max_tokens AS integer[]),
        CAST(:request_bytes AS integer[]), CAST(:stream AS boolean[]), CAST(:waited_s AS float8[]),
        CAST(:deadline_s AS float8[]), CAST(:error_code AS text[])
    ) WITH ORDINALITY AS n(
        job_id, tenant, adapter, revision, priority, reply_to, has_callback, est_prompt_tokens, max_tokens,
        request_bytes, stream, waited_s, deadline_s, error_code, place
    )
    LEFT JOIN cancellations c ON c.job_id = n.job_id
    ORDER BY n.place
    RETURNING job_id, state
""")

_INPUTS = text("""
    INSERT INTO job_inputs (job_id, request, metadata, callback_url, callback_host, submission_id)
    SELECT job_id, CAST(request AS json), CAST(metadata AS json), callback_url, callback_host, submission_id
    FROM unnest(
        CAST(:job_id AS uuid[]), CAST(:request AS text[]), CAST(:metadata AS text[]),
        CAST(:callback_url AS text[]), CAST(:callback_host AS text[]), CAST(:submission_id AS uuid[])
    ) AS n(job_id, request, metadata, callback_url, callback_host, submission_id)
""")

_PUT_ASIDE = text("""
    INSERT INTO intake_rejects (pool, stream, entry_id, body, error)
    SELECT :pool, stream, entry_id, body, error
    FROM unnest(
        CAST(:stream AS text[]), CAST(:entry_id AS text[]), CAST(:body AS bytea[]), CAST(:error AS text[])
    ) AS n(stream, entry_id, body, error)
    ON CONFLICT (pool, stream, entry_id) DO NOTHING
""")


class _Known(NamedTuple):
    """What the ledger has under a name: no digest for a job without a key, no state once the job has left."""

    payload_sha256: str | None
    submission_id: UUID | None
    state: JobState | None
    pool: str | None


class AdmissionRepository:
    """Takes jobs into the ledger; a key once taken stays taken for as long as it is kept."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def admit(self, pool: str, jobs: Sequence[NewJob]) -> list[Admitted]:
        """Admit what is new, in the order given, and say of each job what became of it.

        Of several jobs with one key the first wins: the same payload again is a `repeat`, another one, or the
        same in another pool, a `conflict`. Without a key only the same submission again is a `repeat`. A job
        cancelled before it came is born cancelled, one with a `rejection` born rejected; both get their
        webhook here. Cancels and admissions of a pool come from one leader, one after another.
        """
        firsts = {job.job_id: job for job in reversed(jobs)}
        fresh = self._take_names(pool, [job for job in jobs if firsts[job.job_id] is job])
        states = self._insert(pool, fresh)
        known = self._known([job_id for job_id in firsts if job_id not in states])
        known |= {job.job_id: _known_from(job, states[job.job_id], pool) for job in fresh}
        outcomes = []
        for job in jobs:
            if job.job_id in states and firsts[job.job_id] is job:
                outcomes.append(Admitted(job.job_id, "new", states[job.job_id]))
                continue
            first = known[job.job_id]
            elsewhere = first.pool if first.pool not in (None, pool) else None
            is_repeat = elsewhere is None and _is_repeat(job, first)
            outcomes.append(
                Admitted(job.job_id, "repeat" if is_repeat else "conflict", first.state, elsewhere)
            )
        return outcomes

    def put_aside(self, pool: str, entries: Sequence[RejectedEntry]) -> None:
        """Keep stream entries that cannot be admitted; the same entry again changes nothing."""
        if entries:
            rows = [entry._asdict() for entry in entries]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            self._connection.execute(_PUT_ASIDE, {"pool": pool} | columns)

    def _take_names(self, pool: str, jobs: Sequence[NewJob]) -> list[NewJob]:
        keyed = [job for job in jobs if job.has_key]
        unkeyed = [job.job_id for job in jobs if not job.has_key]
        new_ids: set[UUID] = set()
        if keyed:
            named = {
                "ids": array_literal(job.job_id for job in keyed),
                "sha256": array_literal(job.payload_sha256 for job in keyed),
            }
            new_ids |= set(self._connection.execute(_KEYS, named | {"pool": pool}).scalars())
        if unkeyed:
            taken = self._connection.execute(_TAKEN, {"ids": array_literal(unkeyed)})
            new_ids |= set(unkeyed) - set(taken.scalars())
        return [job for job in jobs if job.job_id in new_ids]

    def _insert(self, pool: str, jobs: Sequence[NewJob]) -> dict[UUID, JobState]:
        if not jobs:
            return {}
        AdapterRepository(self._connection).pin(pool, {job.revision for job in jobs if job.revision})
        requests = [job.spec.request_json() for job in jobs]
        rows = [_job_row(job, request) for job, request in zip(jobs, requests, strict=True)]
        born = self._connection.execute(_JOBS, {"pool": pool} | _columns(rows)).all()
        states = {row.job_id: JobState(row.state) for row in born}
        inputs = [_input_row(job, request) for job, request in zip(jobs, requests, strict=True)]
        self._connection.execute(_INPUTS, _columns(inputs))
        rejected = [job for job in jobs if states[job.job_id] == JobState.REJECTED]
        write_endings(
            self._connection,
            [job.job_id for job in rejected],
            [job.rejection.message for job in rejected if job.rejection],
        )
        write_endings(self._connection, [id_ for id_, state in states.items() if state == JobState.CANCELLED])
        return states

    def _known(self, job_ids: Sequence[UUID]) -> dict[UUID, _Known]:
        if not job_ids:
            return {}
        rows = self._connection.execute(_KNOWN, {"ids": list(job_ids)})
        return {
            row.job_id: _Known(
                row.payload_sha256, row.submission_id, JobState(row.state) if row.state else None, row.pool
            )
            for row in rows
        }


def _known_from(job: NewJob, state: JobState, pool: str) -> _Known:
    return _Known(job.payload_sha256 if job.has_key else None, job.submission_id, state, pool)


def _is_repeat(job: NewJob, first: _Known) -> bool:
    """Tell a repeat: an entry that was read twice, or the payload that the key stands for."""
    if job.submission_id == first.submission_id:
        return True
    if first.payload_sha256 is None or not job.has_key:
        return False
    spec = job.spec if job.is_whole else None
    return is_same_payload(first.payload_sha256, job.payload_sha256, spec, job.model)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Turn rows into the arrays that unnest() takes."""
    return {name: array_literal([row[name] for row in rows]) for name in rows[0]}


def _job_row(job: NewJob, request: str) -> dict[str, Any]:
    spec = job.spec
    return {
        "job_id": job.job_id,
        "tenant": spec.tenant,
        "adapter": spec.adapter,
        "revision": job.revision,
        "priority": PRIORITIES.index(spec.priority),
        "reply_to": job.reply_to,
        "has_callback": spec.callback_url is not None,
        "est_prompt_tokens": job.est_prompt_tokens,
        "max_tokens": spec.max_tokens,
        "request_bytes": len(request.encode()),
        "stream": spec.stream,
        "waited_s": max(job.waited_ms, 0.0) / 1000,
        "deadline_s": spec.deadline_s,
        "error_code": job.rejection.code if job.rejection else None,
    }


def _input_row(job: NewJob, request: str) -> dict[str, Any]:
    spec = job.spec
    return {
        "job_id": job.job_id,
        "request": request,
        "metadata": json.dumps(spec.metadata) if spec.metadata else "{}",
        "callback_url": spec.callback_url,
        "callback_host": urlsplit(spec.callback_url).hostname if spec.callback_url else None,
        "submission_id": job.submission_id,
    }

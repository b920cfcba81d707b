"""Puts jobs into the intake of the pool that serves them, for both kinds of client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from lorayard.client.guard import IntakeEntry, SubmitGuard
from lorayard.client.handle import JobHandle
from lorayard.client.invalid_job import invalid_prompt_size
from lorayard.client.session import Session
from lorayard.client.tracked_job import IntakePlace
from lorayard.contract.errors import InvalidJob, QueueFull, Unavailable
from lorayard.contract.ids import job_id_for, payload_sha256, uuid7
from lorayard.contract.job import JobSpec
from lorayard.contract.keys import PoolKeys
from lorayard.contract.messages import MAX_JOB_BYTES, JobEnvelope
from lorayard.contract.pool import PoolInfo
from lorayard.contract.trusted import trusted
from lorayard.contract.wording import shortened

Confirm = Literal["stream", "ledger"]

_CHUNK_JOBS = 128
_CHUNK_BYTES = 1024 * 1024
"""Redis serves nobody else during a chunk: 128 small jobs take it about a millisecond."""


class _Ready(NamedTuple):
    """A job that only needs sending."""

    envelope: JobEnvelope
    pool: str
    entry: IntakeEntry


class Submitter:
    """Finds each job its pool and appends it there, in the order given; thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._guard = SubmitGuard(session.link.commands)

    def append(self, specs: Sequence[JobSpec], confirm: Confirm) -> list[JobHandle]:
        """Have jobs in Redis; whoever confirms in the ledger has yet to wait for that.

        Raises what `Client.submit` does, but for what only the ledger can tell. QueueFull and Unavailable
        carry in `accepted` the handles of the jobs that went in before.
        """
        self._session.check_usable()
        if confirm not in ("stream", "ledger"):
            raise InvalidJob(f"confirm={shortened(confirm)}: give 'stream' or 'ledger'")
        with self._session.link.reaching(sends=False):
            pools = {adapter: self._session.directory.resolve(adapter) for adapter in _adapters(specs)}
        ready = [self._prepare(spec, pools[spec.adapter], confirm) for spec in specs]
        handles: list[JobHandle] = []
        for chunk in _chunks(ready):
            try:
                self._send(chunk, handles)
            except (QueueFull, Unavailable) as error:
                error.accepted = tuple(handles)
                raise
        return handles

    def _prepare(self, spec: JobSpec, pool: PoolInfo, confirm: Confirm) -> _Ready:
        if (error := invalid_prompt_size(spec, pool)) is not None:
            raise error
        has_key = spec.idempotency_key is not None
        job_id = job_id_for(spec)
        known = {
            "job_id": job_id,
            # A job without a key has one submission, and nothing to be compared with.
            "submission_id": uuid7() if has_key else job_id,
            "payload_sha256": payload_sha256(spec, pool.model_name) if has_key else "",
            "spec": spec,
            "reply_to": self._session.client_id,
            # Under a key only the ledger can tell whether this submission is the job or in conflict with it.
            "confirm_ledger": confirm == "ledger" or has_key,
        }
        envelope = trusted(JobEnvelope, known)
        body = envelope.to_body()
        if len(body) > MAX_JOB_BYTES:
            raise InvalidJob(f"the job has {len(body)} bytes as JSON, at most {MAX_JOB_BYTES}: shorten it")
        return _Ready(envelope, pool.pool, IntakeEntry(spec.priority, body, spec.tenant, spec.est_tokens))

    def _send(self, chunk: Sequence[_Ready], handles: list[JobHandle]) -> None:
        """Append a chunk of one pool; handles of what went in are added before a refusal is raised."""
        tracker, pool = self._session.tracker, chunk[0].pool
        # Before they are sent: a reply may be here before the submission has returned.
        watches = [tracker.expect(ready.envelope) for ready in chunk]
        try:
            with self._session.link.reaching(sends=True):
                appended = self._guard.append(PoolKeys(pool), [ready.entry for ready in chunk])
        except Unavailable:
            tracker.withdraw(zip(watches, (ready.envelope for ready in chunk), strict=True))
            raise
        for ready, tracked, entry_id in zip(chunk, watches, appended.entry_ids, strict=False):
            tracker.submitted(tracked, IntakePlace(pool, ready.entry.priority, entry_id))
            handles.append(JobHandle(self._session, tracked, ready.envelope.submission_id))
        if appended.refusal is not None:
            refused = range(len(appended.entry_ids), len(chunk))
            tracker.withdraw((watches[index], chunk[index].envelope) for index in refused)
            raise appended.refusal


def _adapters(specs: Iterable[JobSpec]) -> set[str | None]:
    return {spec.adapter for spec in specs}


def _chunks(ready: Sequence[_Ready]) -> Iterator[Sequence[_Ready]]:
    """Cut a list into runs of one pool, bounded in jobs and bytes."""
    start = size = 0
    for position, item in enumerate(ready):
        fits = position - start < _CHUNK_JOBS and size + len(item.entry.body) <= _CHUNK_BYTES
        if position > start and not (fits and item.pool == ready[start].pool):
            yield ready[start:position]
            start, size = position, 0
        size += len(item.entry.body)
    if start < len(ready):
        yield ready[start:]

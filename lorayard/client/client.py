"""The producer's way in: submit jobs, find them again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack
from uuid import UUID

from lorayard.client.guard import IntakeEntry, SubmitGuard
from lorayard.client.handle import JobHandle
from lorayard.client.invalid_job import invalid_prompt_size, validated
from lorayard.client.session import Session
from lorayard.client.settings import client_settings
from lorayard.client.tracked_job import IntakePlace
from lorayard.contract.errors import InvalidJob, QueueFull, Unavailable
from lorayard.contract.ids import job_id_for, payload_sha256, uuid7
from lorayard.contract.job import JobKeywords, JobSpec
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


class Client:
    """A producer's connection to Lorayard; one a process, shared by its threads.

    `model` (a model name or a pool id) chooses among several pools. `timeout_s` bounds each exchange with
    Redis and each wait for a scheduler's answer, `confirm_timeout_s` the wait of `confirm="ledger"` for all
    jobs of a call together. What the URL says of replies, timeouts and pools is for other libraries.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        model: str | None = None,
        timeout_s: float = 5.0,
        confirm_timeout_s: float = 30.0,
    ) -> None:
        self._session = Session(redis_url, model, timeout_s)
        self._guard = SubmitGuard(self._session.link.commands)
        self._confirm_timeout_s = confirm_timeout_s

    @classmethod
    def from_env(cls, *, model: str | None = None) -> Self:
        """Make a client of `LORAYARD_REDIS_URL` (or `REDIS_URL`)."""
        redis_url, timeout_s = client_settings()
        return cls(redis_url, model=model, timeout_s=timeout_s)

    def __reduce__(self) -> str:
        raise TypeError("a Client belongs to its process: make one in each")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; jobs go on. Handles of this client can only tell what they already know."""
        self._session.close()

    def submit(
        self,
        prompt: str | None = None,
        *,
        confirm: Confirm = "stream",
        **fields: Unpack[JobKeywords],
    ) -> JobHandle:
        """Submit one job and return its handle.

        `fields` are those of `JobSpec`: `adapter`, `max_tokens`, `temperature` and more; what is left out, or
        None, has its default. `messages` take the place of a prompt. `stream=True` has the text written as it
        comes, for `JobHandle.stream` to read. `structured_outputs` gives the answer a form: one of `json`,
        `regex`, `choice` and `grammar`.

        `confirm="stream"` returns once Redis has it, `"ledger"` once Postgres has. Raises InvalidJob,
        UnknownAdapter, UnknownPool, QueueFull (QuotaExceeded if it is only this tenant's), Unavailable, and
        with `"ledger"` IdempotencyConflict, ResultExpired and ResultTimeout; without it the first two of
        these are raised by `result`.
        """
        given = {"prompt": prompt, **fields}
        set_fields = {name: value for name, value in given.items() if value is not None}
        return self._submit([validated(set_fields)], confirm)[0]

    def submit_many(
        self, jobs: Iterable[JobSpec | Mapping[str, Any]], *, confirm: Confirm = "stream"
    ) -> list[JobHandle]:
        """Submit jobs in order, in blocks; all are validated before the first is sent.

        Raises as `submit` does. QueueFull and Unavailable carry in `accepted` the handles of the jobs that
        went in before: the first ones of the list.
        """
        return self._submit([validated(job, position) for position, job in enumerate(jobs)], confirm)

    def job(self, job_id: UUID | str) -> JobHandle:
        """Return the handle of a job, whichever process submitted it; nothing is asked yet."""
        self._session.check_usable()
        try:
            known = job_id if isinstance(job_id, UUID) else UUID(job_id)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidJob(
                f"{shortened(job_id)} is not a valid job id: give the UUID that submit returned"
            ) from error
        return JobHandle(self._session, self._session.tracker.track(known))

    def adapters(self) -> list[str]:
        """Name the adapters that jobs may ask for; one just added shows within a second."""
        self._session.check_usable()
        with self._session.link.reaching(sends=False):
            return self._session.directory.adapters()

    def _submit(self, specs: Sequence[JobSpec], confirm: Confirm) -> list[JobHandle]:
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
        if confirm == "ledger":
            deadline = time.monotonic() + self._confirm_timeout_s
            for handle in handles:
                handle.wait_admitted(self._confirm_timeout_s, deadline)
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

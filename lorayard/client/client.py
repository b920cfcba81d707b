"""The producer's way in: submit jobs, find them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack
from uuid import UUID

from pydantic import ValidationError

from lorayard.client.guard import IntakeEntry, SubmitGuard
from lorayard.client.handle import JobHandle
from lorayard.client.invalid_job import invalid_prompt_size, problems_of, validated
from lorayard.client.session import Session
from lorayard.client.settings import ClientSettings
from lorayard.client.watch import IntakePlace
from lorayard.contract.errors import InvalidJob, LorayardError, QueueFull, Unavailable
from lorayard.contract.ids import job_id_for, payload_sha256, uuid7
from lorayard.contract.job import JobSpec, Message, Priority
from lorayard.contract.keys import PoolKeys
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.pool import PoolInfo
from lorayard.contract.sampling import SamplingKeywords
from lorayard.contract.structured_outputs import StructuredOutputs
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
    Redis and each wait for a scheduler's answer, `confirm_timeout_s` the wait of `confirm="ledger"`.
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
        try:
            settings = ClientSettings()
        except ValidationError as error:
            raise LorayardError(f"the environment is wrong: {problems_of(error)}") from error
        if settings.redis_url is None:
            raise Unavailable(
                "LORAYARD_REDIS_URL is not set: export it, e.g. redis://127.0.0.1:6379/0; "
                "`lorayard up` prints the one it serves"
            )
        return cls(settings.redis_url, model=model, timeout_s=settings.timeout_s)

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
        messages: Sequence[Message | Mapping[str, str]] | None = None,
        adapter: str | None = None,
        adapter_scale: float = 1.0,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stream: bool = False,
        structured_outputs: StructuredOutputs | Mapping[str, Any] | None = None,
        priority: Priority = "normal",
        deadline_s: float | None = None,
        tenant: str = "default",
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        confirm: Confirm = "stream",
        **sampling: Unpack[SamplingKeywords],
    ) -> JobHandle:
        """Submit one job and return its handle.

        `stream=True` has its text written as it comes, for `JobHandle.stream` to read. `structured_outputs`
        gives the answer a form: one of `json`, `regex`, `choice` and `grammar`.
        `sampling` may hold all of `SamplingOptions`: min_p, penalties, logit_bias, bad_words and more.

        `confirm="stream"` returns once Redis has it, `"ledger"` once Postgres has. Raises InvalidJob,
        UnknownAdapter, UnknownPool, QueueFull, Unavailable, and with `"ledger"` IdempotencyConflict and
        ResultTimeout; without it a conflict is raised by `result`.
        """
        fields = {
            "prompt": prompt, "messages": messages, "adapter": adapter, "adapter_scale": adapter_scale,
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k,
            "seed": seed, "stop": stop, "stream": stream, "structured_outputs": structured_outputs,
            "priority": priority, "deadline_s": deadline_s, "tenant": tenant,
            "callback_url": callback_url, "idempotency_key": idempotency_key,
            "metadata": {} if metadata is None else metadata, **sampling,
        }  # fmt: skip
        return self._submit([validated(fields)], confirm)[0]

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
        except ValueError as error:
            raise InvalidJob(
                f"{shortened(job_id)} is no job id: give the UUID that submit returned"
            ) from error
        return JobHandle(self._session, self._session.board.watch(known))

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
            for handle in handles:
                handle.wait_admitted(self._confirm_timeout_s)
        return handles

    def _prepare(self, spec: JobSpec, pool: PoolInfo, confirm: Confirm) -> _Ready:
        if (error := invalid_prompt_size(spec, pool)) is not None:
            raise error
        envelope = JobEnvelope(
            job_id=job_id_for(spec),
            submission_id=uuid7(),
            payload_sha256=payload_sha256(spec),
            spec=spec,
            reply_to=self._session.client_id,
            # Under a key only the ledger can tell whether this submission is the job or in conflict with it.
            confirm_ledger=confirm == "ledger" or spec.idempotency_key is not None,
        )
        return _Ready(
            envelope, pool.pool, IntakeEntry(spec.priority, spec.tenant, envelope.model_dump_json().encode())
        )

    def _send(self, chunk: Sequence[_Ready], handles: list[JobHandle]) -> None:
        """Append a chunk of one pool; handles of what went in are added before a refusal is raised."""
        board, pool = self._session.board, chunk[0].pool
        # Before they are sent: a reply may be here before the submission has returned.
        watches = [board.expect(ready.envelope) for ready in chunk]
        try:
            with self._session.link.reaching(sends=True):
                appended = self._guard.append(PoolKeys(pool), [ready.entry for ready in chunk])
        except Unavailable:
            board.withdraw(zip(watches, (ready.envelope for ready in chunk), strict=True))
            raise
        for ready, watch, entry_id in zip(chunk, watches, appended.entry_ids, strict=False):
            board.submitted(watch, IntakePlace(pool, ready.entry.priority, entry_id))
            handles.append(JobHandle(self._session, watch, ready.envelope.submission_id))
        if appended.refusal is not None:
            refused = range(len(appended.entry_ids), len(chunk))
            board.withdraw((watches[index], chunk[index].envelope) for index in refused)
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

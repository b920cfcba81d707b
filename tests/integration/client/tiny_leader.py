"""The client's counterpart in these tests: reads the streams and replies, with a dict for a ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

import redis

from lorayard.contract.keys import POOLS_KEY, PoolKeys, reply_key
from lorayard.contract.messages import CatalogueEntry, ControlMessage, JobEnvelope, JobReply
from lorayard.contract.pool import PoolInfo
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

POOL = "a" * 16
KEYS = PoolKeys(POOL)
_MAX_INLINE_CHARS = 8192


def connect(url: str) -> redis.Redis:
    """Connect as the tests do: bytes in, bytes out, lists for streams."""
    return redis.Redis.from_url(url, protocol=2)


def register_pool(
    url: str, pool: str = POOL, model_name: str = "tiny", adapters: tuple[str, ...] = ()
) -> None:
    """Publish a pool with its catalogue, as its leader would."""
    info = PoolInfo(pool=pool, model_name=model_name, max_model_len=256, max_prompt_bytes=4096)
    with connect(url) as client:
        client.hset(POOLS_KEY, pool, info.model_dump_json())
        for name in adapters:
            put_adapter(url, name, "active", pool)
        client.hset(PoolKeys(pool).admission, "catalogue_version", 1)


def put_adapter(url: str, name: str, state: Any, pool: str = POOL) -> None:
    """Mirror one adapter into the catalogue."""
    entry = CatalogueEntry(name=name, revision=f"sha256:{name}", rank=4, state=state)
    with connect(url) as client:
        client.hset(PoolKeys(pool).catalogue, name, entry.model_dump_json())


def succeed(envelope: JobEnvelope) -> JobResult | None:
    """End a job well: its prompt in upper case."""
    return JobResult(
        job_id=envelope.job_id,
        state=JobState.SUCCEEDED,
        output=(envelope.spec.prompt or "").upper(),
        metadata=envelope.spec.metadata,
    )


def never_end(envelope: JobEnvelope) -> JobResult | None:
    """Leave a job queued."""
    return None


class TinyLeader:
    """Admits what comes in, ends it as `outcome` says, answers the control stream; all on one thread."""

    def __init__(
        self,
        url: str,
        outcome: Callable[[JobEnvelope], JobResult | None] = succeed,
        *,
        announces: bool = True,
    ) -> None:
        self._url = url
        self._outcome = outcome
        self._announces = announces
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tiny-leader")
        self._cursor = b"0-0"
        self.envelopes: dict[UUID, JobEnvelope] = {}
        self.results: dict[UUID, JobResult] = {}
        self.order: list[UUID] = []
        self.lookups: list[UUID] = []
        self.conflicts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def end(self, job_id: UUID, state: JobState = JobState.SUCCEEDED, output: str = "ended") -> None:
        """End an admitted job from the test's thread."""
        result = JobResult(job_id=job_id, state=state, output=output)
        self.results[job_id] = result
        with connect(self._url) as client:
            self._announce(client, self.envelopes[job_id])

    def _run(self) -> None:
        with connect(self._url) as client:
            while not self._stopping.is_set():
                try:
                    if not self._admit(client) and not self._answer(client):
                        self._stopping.wait(0.005)
                except redis.RedisError:
                    self._stopping.wait(0.05)

    def _admit(self, client: redis.Redis) -> int:
        count = 0
        for stream in KEYS.all_jobs:
            entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(stream, count=512))
            for entry_id, fields in entries:
                envelope = JobEnvelope.from_entry(fields)
                client.xdel(stream, entry_id)
                client.decrby(KEYS.intake_bytes, len(fields[b"body"]))
                self._take(client, envelope)
                count += 1
        return count

    def _take(self, client: redis.Redis, envelope: JobEnvelope) -> None:
        first = self.envelopes.setdefault(envelope.job_id, envelope)
        if first.payload_sha256 != envelope.payload_sha256:
            self.conflicts += 1
            return self._conflict(client, envelope)
        if first is envelope:
            self.order.append(envelope.job_id)
            if (result := self._outcome(envelope)) is not None:
                self.results[envelope.job_id] = result
        return self._announce(client, envelope) if self._announces else None

    def _conflict(self, client: redis.Redis, envelope: JobEnvelope) -> None:
        error = JobError(code="idempotency_conflict", message="the key was used with another payload")
        reply = JobReply(
            job_id=envelope.job_id, state=None, submission_id=envelope.submission_id, conflict=error
        )
        client.xadd(reply_key(str(envelope.reply_to)), reply.to_entry())

    def _announce(self, client: redis.Redis, envelope: JobEnvelope) -> None:
        reply = self._reply(envelope.job_id, inline=_MAX_INLINE_CHARS)
        client.xadd(
            reply_key(str(envelope.reply_to)),
            reply.model_copy(update={"submission_id": envelope.submission_id}).to_entry(),
        )

    def _answer(self, client: redis.Redis) -> int:
        read = cast("list[Any]", client.xread({KEYS.control: self._cursor}, count=100))
        entries = read[0][1] if read else []
        for entry_id, fields in entries:
            self._cursor = entry_id
            message = ControlMessage.from_entry(fields)
            self.lookups.append(message.job_id)
            if message.kind == "cancel" and message.job_id in self.envelopes:
                cancelled = JobResult(job_id=message.job_id, state=JobState.CANCELLED)
                self.results.setdefault(message.job_id, cancelled)
            reply = self._reply(message.job_id, inline=1_000_000)
            answer = reply.model_copy(update={"request_id": message.request_id})
            client.xadd(reply_key(str(message.reply_to)), answer.to_entry())
        return len(entries)

    def _reply(self, job_id: UUID, inline: int) -> JobReply:
        result = self.results.get(job_id)
        if result is None:
            return JobReply(job_id=job_id, state=JobState.QUEUED if job_id in self.envelopes else None)
        omitted = len(result.output or "") > inline
        shown = result.model_copy(update={"output": None}) if omitted else result
        return JobReply(job_id=job_id, state=result.state, result=shown, output_omitted=omitted)

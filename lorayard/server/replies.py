"""Tells clients, on the reply streams they named, what the ledger already knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol
from uuid import UUID

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from lorayard.contract.keys import reply_key, tokens_key
from lorayard.contract.messages import MAX_INLINE_OUTPUT_BYTES, RESULT_EXPIRED, JobReply, TokenEntry
from lorayard.contract.result import JobError, JobResult

REPLY_STREAM_MAXLEN: Final = 10_000
TOKEN_STREAM_MAXLEN: Final = 20_000
TOKEN_STREAM_TTL_S: Final = 600
"""After the last token; a client that comes later gets the result in one piece."""
REPLY_STREAM_TTL_S: Final = 3600
"""A client gone for so long looks its jobs up."""

_LAST_OF_ATTEMPT: Final = 2**64 - 1
_LATE_TOKENS: Final = "The ID specified in XADD is equal or smaller than the target stream top item"


class AnnouncedJob(Protocol):
    """What there is to tell of a job that has ended; the ledger's record of it."""

    @property
    def job_id(self) -> UUID:
        """Whose end it is."""
        ...

    @property
    def attempt(self) -> int:
        """The run that ended it."""
        ...

    @property
    def result(self) -> JobResult:
        """What clients are told."""
        ...

    @property
    def reply_to(self) -> str | None:
        """The client that waits, if one does."""
        ...

    @property
    def stream(self) -> bool:
        """Whether its tokens are streamed."""
        ...


def state_reply(result: JobResult, *, whole: bool = False, submission_id: UUID | None = None) -> JobReply:
    """Render a job's state, with its result once it has ended.

    An output above the inline limit is left out unless the `whole` was asked for.
    """
    output = result.output
    omitted = not whole and output is not None and len(output.encode()) > MAX_INLINE_OUTPUT_BYTES
    shown = result.model_copy(update={"output": None}) if omitted else result
    return JobReply(
        job_id=result.job_id,
        state=result.state,
        attempt=result.attempt,
        result=shown if result.state.is_terminal else None,
        output_omitted=omitted,
        submission_id=submission_id,
    )


def expired_reply(
    job_id: UUID, *, submission_id: UUID | None = None, request_id: UUID | None = None
) -> JobReply:
    """Render that a job has ended and left the ledger, which only remembers its key."""
    error = JobError(
        code=RESULT_EXPIRED,
        message=f"job {job_id} has ended and left the ledger, which only remembers its idempotency key: it "
        "does not run again; take another key for another job",
    )
    return JobReply(
        job_id=job_id, state=None, submission_id=submission_id, request_id=request_id, conflict=error
    )


def send_replies(redis: Redis, replies: Iterable[tuple[str, JobReply]]) -> None:
    """Append replies to their clients' streams.

    Given a pipeline, this only queues the commands: its owner executes it, in one round trip for all.
    """
    clients: dict[str, None] = {}
    for client_id, reply in replies:
        clients[client_id] = None
        fields: dict[Any, Any] = dict(reply.to_entry())
        redis.xadd(reply_key(client_id), fields, maxlen=REPLY_STREAM_MAXLEN, approximate=True)
    for client_id in clients:
        redis.expire(reply_key(client_id), REPLY_STREAM_TTL_S)


def append_tokens(pipeline: Pipeline, job_id: UUID, entries: Iterable[TokenEntry]) -> None:
    """Queue what a job's stream of tokens is to get; `send` executes the pipeline.

    Entry ids are `attempt-(characters before it + 1)`, so Redis itself refuses what a fenced attempt writes
    after a newer one began, and what is written twice. The end of an attempt has its highest id.
    """
    key = tokens_key(job_id)
    for entry in entries:
        place = _LAST_OF_ATTEMPT if entry.ended else entry.char_offset + 1
        entry_id = f"{entry.attempt}-{place}"
        pipeline.xadd(key, entry.to_entry(), id=entry_id, maxlen=TOKEN_STREAM_MAXLEN, approximate=True)
    pipeline.expire(key, TOKEN_STREAM_TTL_S)


def send(pipeline: Pipeline) -> None:
    """Execute a pipeline, and pass over tokens that come too late to be told; raises redis-py's errors."""
    for answer in pipeline.execute(raise_on_error=False):
        if isinstance(answer, Exception) and not is_late(answer):
            raise answer


def is_late(error: Exception) -> bool:
    """Whether Redis refused tokens because a newer attempt's, or later ones of this, are there."""
    return isinstance(error, ResponseError) and _LATE_TOKENS in str(error)


def announce(pipeline: Pipeline, finished: Iterable[AnnouncedJob]) -> None:
    """Queue the news of ended jobs for those who asked for it; `send` executes the pipeline."""
    finished = list(finished)
    for job in finished:
        if job.stream:
            append_tokens(pipeline, job.job_id, [TokenEntry(attempt=job.attempt, ended=True)])
    send_replies(pipeline, [(job.reply_to, state_reply(job.result)) for job in finished if job.reply_to])

"""Versioned messages between clients, scheduler and workers, each one JSON field of a stream entry.

Writers leave out what was not set, and a default never changes within a version. So a field that a reader
does not know changes the meaning of a job, and that job is refused; in a `Report` it is passed over.
`docs/messages.md` says what that makes of a rolling upgrade.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorayard.contract.job import JobSpec, Name
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

BODY_FIELD = b"body"
"""The field of a stream entry that holds the message."""

MAX_JOB_BYTES = 8 * 1024 * 1024
"""A job's message: a prompt of the largest size in which every character is escaped has 6 MB."""

WRITER_FIELD = b"writer"
"""The field of an intake entry that holds the release of its client, beside a body that old readers know."""

ANSWERED_FIELD = b"answered"
"""The field of a worker's entry that names a ping which came through its queue, beside a `WorkerEvent`."""

PLACE_FIELD = b"place"
"""The field of a control entry that asks for the job's place as well, beside a `ControlMessage`."""

RESULT_EXPIRED = "result_expired"
"""In a reply's `conflict`: the job of this name has ended and left the ledger."""

MAX_INLINE_OUTPUT_BYTES = 8192
"""A larger output is left out of the reply; the client looks it up."""


class WireMessage(BaseModel):
    """A message with a version: a reader refuses what it was not built for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: ClassVar[int] = 1

    v: Literal[1] = 1

    def model_post_init(self, _context: Any, /) -> None:
        """Count the version as set: it is written with every message."""
        self.__pydantic_fields_set__.add("v")

    def to_body(self) -> bytes:
        """Render what was set as JSON."""
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True)

    def to_entry(self) -> dict[Any, Any]:
        """Render as the fields of a stream entry, {b"body": JSON bytes}; typed as loosely as XADD needs."""
        return {BODY_FIELD: self.to_body()}

    @classmethod
    def from_entry(cls, fields: dict[bytes, bytes]) -> Self:
        """Read the fields of a stream entry; raises ValueError (pydantic's or ours) on anything else."""
        body = fields.get(BODY_FIELD)
        if body is None:
            raise ValueError(f"stream entry has the fields {sorted(fields)}, not 'body': it is not ours")
        return cls.model_validate_json(body)


class Report(WireMessage):
    """A message that tells of something; a field that a later release has added is passed over."""

    model_config = ConfigDict(extra="ignore")


class JobEnvelope(WireMessage):
    """Client -> intake: a job with its name and its way back."""

    job_id: UUID
    submission_id: UUID = Field(description="one per submit call, so that a conflict finds its caller")
    payload_sha256: str = Field(description="what a key stands for; of a job without one nobody reads it")
    spec: JobSpec
    reply_to: Name | None = Field(default=None, description="client id; its reply stream hears of the job")
    confirm_ledger: bool = Field(default=False, description="announce the admission as well")


class JobReply(Report):
    """Leader or worker -> client: a job's state has changed, or was asked for.

    Replies of an admission (asked for by `confirm_ledger`, or a repeat, or a conflict) bear `submission_id`.
    A conflict says nothing of the state: that belongs to the first submission. Of code RESULT_EXPIRED it may
    answer a request as well.
    """

    job_id: UUID
    state: JobState | None = Field(description="None: the ledger has no such job")
    attempt: int = 0
    result: JobResult | None = Field(default=None, description="set when the state is terminal")
    output_omitted: bool = Field(default=False, description="the output is too large: look it up")
    submission_id: UUID | None = Field(
        default=None, description="set when this tells what became of one submission at admission"
    )
    conflict: JobError | None = Field(
        default=None, description="why this submission is not the job of its name, or that the job has left"
    )
    request_id: UUID | None = Field(default=None, description="of the ControlMessage that this answers")
    queue_position: int | None = Field(
        default=None, description="jobs foreseen to be given to workers before it, if that was asked for"
    )
    eta_s: float | None = Field(default=None, description="seconds foreseen until its end, if asked for")


class ControlMessage(WireMessage):
    """Client -> leader: cancel a job, or tell its state; the reply bears the same `request_id`."""

    kind: Literal["cancel", "lookup"]
    job_id: UUID
    reply_to: Name | None = None
    request_id: UUID | None = Field(default=None, description="echoed in the reply that answers this")


_FLAT_REQUEST = (
    "prompt", "messages", "adapter_scale", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop",
    "stream", "structured_outputs",
)  # fmt: skip
"""Fields of the request that `BatchJob` once had one by one, with the others under `sampling`."""


class BatchJob(WireMessage):
    """One job of a micro-batch, with everything needed to run it.

    The request is handed on as the ledger has it: only the worker reads it, as a `GenerationRequest`. A
    field that it does not know is kept in `model_extra`, so that it can refuse this job and run the others.
    """

    model_config = ConfigDict(extra="allow")

    job_id: UUID
    attempt: int
    tenant: str
    adapter: str | None
    revision: str | None
    request: dict[str, Any]
    queue_ms: float
    first_token_within_s: float | None = Field(default=None, description="what is left of the deadline")
    reply_to: str | None
    has_callback: bool
    metadata: dict[str, Any] = Field(default_factory=dict)
    writer: str | None = Field(default=None, description="release of the scheduler that sent it")

    @model_validator(mode="before")
    @classmethod
    def _gather_flat_request(cls, data: Any) -> Any:
        """Read what schedulers wrote before the request was one field."""
        if not isinstance(data, dict) or "request" in data:
            return data
        rest = dict(data)
        flat = {name: rest.pop(name) for name in _FLAT_REQUEST if name in rest}
        request = {name: value for name, value in flat.items() if value is not None}
        return rest | {"request": request | (rest.pop("sampling", None) or {})}


class TokenEntry(Report):
    """Worker -> client, on the stream of one job: what an attempt wrote next; or that the job has ended.

    The offsets count the attempt's tokens and characters before this entry. A higher attempt starts over.
    """

    attempt: int
    token_offset: int = 0
    char_offset: int = 0
    text: str = ""
    ended: bool = False


class MicroBatch(WireMessage):
    """Leader -> worker, as the argument of the Celery task `workers.run_micro_batch`.

    It only carries jobs, so a field that a later release has added to it is passed over.
    """

    model_config = ConfigDict(extra="ignore")

    batch_id: UUID
    pool: str
    incarnation: str
    term: int
    jobs: tuple[BatchJob, ...]


class Residency(BaseModel):
    """Where one adapter revision now is on a worker."""

    model_config = ConfigDict(frozen=True)

    revision: str
    tier: Literal["device", "host", "none"]


class EndedJob(BaseModel):
    """One job that a worker holds no longer; `requeued` when it goes back unfinished."""

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    attempt: int
    state: JobState
    prompt_tokens: int | None = Field(default=None, description="as committed; None: not told")
    completion_tokens: int | None = None


class AdapterFailure(BaseModel):
    """A load that failed on a worker: `retryable` is its host's fault, else the revision itself is bad."""

    model_config = ConfigDict(frozen=True)

    revision: str
    code: str
    message: str
    retryable: bool


class HeldJob(BaseModel):
    """A job that a worker has in hand."""

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    attempt: int
    running: bool


class WorkerEvent(Report):
    """Worker -> leader: one per commit group, and one per heartbeat (which alone carries `held`).

    With `held` set, `residency` is the whole picture; without, only what changed since the last event.
    """

    incarnation: str
    free_seqs: int
    free_kv_blocks: int
    residency_epoch: int = 0
    residency: tuple[Residency, ...] = ()
    ended: tuple[EndedJob, ...] = ()
    held: tuple[HeldJob, ...] | None = None
    failures: tuple[AdapterFailure, ...] = ()
    draining: bool = False


class Command(Report):
    """Leader -> one worker."""

    kind: Literal["cancel", "recall", "drain", "prefetch", "drop"]
    term: int
    job_ids: tuple[UUID, ...] = ()
    revisions: tuple[str, ...] = ()


class CatalogueEntry(Report):
    """What a client may know of an adapter before it submits."""

    name: str
    revision: str
    rank: int
    state: Literal["active", "quarantined", "removed"]

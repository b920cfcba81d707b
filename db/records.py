"""What leaves the ledger: frozen values, never a row that still hangs on a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from lorayard.contract.job import JobSpec, Message, Priority
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

WorkerState = Literal["ready", "draining", "gone", "lost"]


class JobAttempt(NamedTuple):
    """One run of one job; `attempt` is its fencing token."""

    job_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as the leader offers it to the ledger."""

    job_id: UUID
    submission_id: UUID
    spec: JobSpec
    payload_sha256: str
    reply_to: str | None
    revision: str | None
    est_prompt_tokens: int
    waited_ms: float
    """Age of the stream entry by Redis's clock, so that submission falls on the database's clock."""
    rejection: JobError | None = None
    """Set for a job that is born rejected, with its reason."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What became of one offered job; `state` is None when only the key outlived the job."""

    job_id: UUID
    outcome: Literal["new", "repeat", "conflict"]
    state: JobState | None


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that a statement has just moved, with everything there is to announce."""

    job_id: UUID
    attempt: int
    state: JobState
    result: JobResult
    reply_to: str | None


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A queued job as the policies see it: no prompt."""

    job_id: UUID
    admit_seq: int
    priority: Priority
    tenant: str
    adapter: str | None
    revision: str | None
    est_tokens: int
    """Estimated tokens of the prompt; `max_tokens` more may follow."""
    max_tokens: int
    waited_s: float
    deadline_in_s: float | None
    strikes: int


@dataclass(frozen=True, slots=True)
class BacklogRow:
    """One lane of the backlog: what is queued for a class, tenant and adapter."""

    priority: Priority
    tenant: str
    adapter: str | None
    jobs: int
    est_tokens: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """A job in some worker's hand."""

    job_id: UUID
    attempt: int
    incarnation: str
    revision: str | None
    tenant: str
    adapter: str | None
    est_tokens: int
    max_tokens: int
    strikes: int
    leased_s: float


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job as it goes to its worker, with everything needed to run it."""

    job_id: UUID
    attempt: int
    strikes: int
    tenant: str
    adapter: str | None
    revision: str | None
    prompt: str | None
    messages: tuple[Message, ...] | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    queue_ms: float
    first_token_within_s: float | None
    reply_to: str | None
    has_callback: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """What became of jobs given back: queued again, or ended because someone had cancelled them."""

    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class LostJobs:
    """What became of a lost worker's jobs; `finished` holds the dead and those cancelled meanwhile.

    `lost` is False when the worker was not lost after all: it has renewed, or someone was faster.
    """

    lost: bool
    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker can hold."""

    max_num_seqs: int
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    max_loras: int
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One start of one worker."""

    incarnation: str
    pool: str
    hostname: str
    state: WorkerState
    limits: WorkerLimits
    lease_left_s: float


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a heartbeat."""

    alive: bool
    """False: the incarnation is lost or unknown. Abort everything and start as a new one."""
    cancelled: tuple[UUID, ...] = ()
    not_mine: tuple[JobAttempt, ...] = ()
    """Held pairs whose lease is over: abort them and say nothing."""
    state: WorkerState = "ready"


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """One run as its worker reports it. `state` is any end but `dead`, or `queued` to give the job back."""

    job_id: UUID
    attempt: int
    state: JobState
    output: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float | None = None
    run_ms: float | None = None
    device_ms: float = 0.0
    error: JobError | None = None
    revision: str | None = None
    loads: int = 0
    load_ms: float = 0.0
    hits: int = 0


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """Usage that belongs to no single job's end; `adapter=None` is the base model."""

    tenant: str
    adapter: str | None
    loads: int = 0
    load_ms: float = 0.0
    hits: int = 0
    evictions: int = 0
    failures: int = 0
    wasted_device_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage summed over a time; the column not asked for is None, and so is the base model's adapter."""

    adapter: str | None
    tenant: str | None
    jobs: int
    prompt_tokens: int
    completion_tokens: int
    device_ms: float
    queue_ms: float
    loads: int
    load_ms: float
    hits: int
    evictions: int
    failures: int
    wasted_device_ms: float


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What a cancel met: no such job (`state` None), a queued one (now `finished`), or one that runs."""

    state: JobState | None
    finished: FinishedJob | None = None
    incarnation: str | None = None
    """Set when the job runs: the worker to tell."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job's state with its outcome, as a lookup answers it."""

    attempt: int
    reply_to: str | None
    result: JobResult


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """One adapter's weights, named by their content digest."""

    digest: str
    rank: int
    targets: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook to send; `claim` guards what is written after the attempt."""

    id: UUID
    job_id: UUID
    url: str
    host: str
    tenant: str
    event_type: str
    claim: int
    tries: int
    """This attempt included."""
    created_at: datetime
    ended_at: datetime
    result: JobResult


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A webhook as lists show it."""

    id: UUID
    job_id: UUID
    tenant: str
    url: str
    event_type: str
    state: Literal["pending", "delivered", "dead"]
    tries: int
    status: int | None
    error: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant; `weight` is its share where others wait as well."""

    name: str
    weight: float
    has_secret: bool
    rotating: bool

"""Jobs on their way in, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

from lorayard.contract.job import JobSpec
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState


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
    model: str
    """The name of the model that is asked, on which the digest depends."""
    reply_to: str | None
    revision: str | None
    est_prompt_tokens: int
    waited_ms: float
    """Age of the stream entry by Redis's clock, so that submission falls on the database's clock."""
    rejection: JobError | None = None
    """Set for a job that is born rejected, with its reason."""
    is_whole: bool = True
    """False if `spec` holds only what could be read of the job."""

    @property
    def has_key(self) -> bool:
        """Whether its name is derived from a key of its producer's."""
        return self.spec.idempotency_key is not None


@dataclass(frozen=True, slots=True)
class Admitted:
    """What became of one offered job; `state` is None when only the key outlived the job."""

    job_id: UUID
    outcome: Literal["new", "repeat", "conflict"]
    state: JobState | None
    elsewhere: str | None = None
    """The pool whose job bears the name, if it is another one."""


class RejectedEntry(NamedTuple):
    """A stream entry that cannot be admitted, as it came, and why."""

    stream: str
    entry_id: str
    body: bytes
    error: str


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that a statement has just moved, with everything there is to announce."""

    job_id: UUID
    attempt: int
    state: JobState
    result: JobResult
    reply_to: str | None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """One run as its worker reports it. `state` is any end but `dead`, or `queued` to give the job back."""

    job_id: UUID
    attempt: int
    state: JobState
    output: str | None = None
    finish_reason: str | None = None
    sampling: Mapping[str, float] | None = None
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
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What a cancel met: no such job (`state` None), a queued one (now `finished`), or one that runs."""

    state: JobState | None
    finished: FinishedJob | None = None
    incarnation: str | None = None
    """Set when the job runs: the worker to tell."""


class DeletedBatch(NamedTuple):
    """What one batch of retention came to: what was examined but not deleted is still needed."""

    examined: int
    deleted: int
    reached: datetime | None
    """The latest time among those examined; the next batch goes on from there."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job's state with its outcome, as a lookup answers it."""

    attempt: int
    reply_to: str | None
    result: JobResult

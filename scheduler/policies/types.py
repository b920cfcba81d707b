"""What policies see and say: headers of jobs, views of workers, planned micro-batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from uuid import UUID

Revision = str | None
"""Content digest of an adapter; None is the base model, which needs no slot."""


class JobOrder(NamedTuple):
    """Oldest first; the admission sequence settles ties, so that equal inputs give equal plans."""

    waiting_since: float
    admit_seq: int


@dataclass(frozen=True, slots=True)
class PendingJob:
    """A queued job without its prompt."""

    job_id: UUID
    admit_seq: int
    priority: int
    """Place in `lorayard.contract.job.PRIORITIES`; 0 is the most urgent."""
    revision: Revision
    rank: int
    prompt_tokens: int
    """Estimated at admission; its worker counts exactly."""
    max_tokens: int
    waiting_since: float
    """Monotonic seconds of this process."""
    attempt: int = 0
    group: UUID | None = None
    """Set for suspects, which may have ended an engine: those of one group run with no other jobs."""
    request_bytes: int = 0
    tenant: str = ""
    deadline_at: float | None = None
    """Monotonic seconds of this process; its first token is due by then."""
    adapter_bytes: int = 0

    @property
    def order(self) -> JobOrder:
        """Sort key within a lane."""
        return JobOrder(self.waiting_since, self.admit_seq)


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """What one worker can hold."""

    max_num_seqs: int
    kv_tokens: int
    max_model_len: int
    max_loras: int
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker that may be given jobs, as the leader sees it now."""

    incarnation: str
    capacity: WorkerCapacity
    target_seqs: int
    """Jobs it should have outstanding: its running capacity and some measured work ahead."""
    num_outstanding: int = 0
    outstanding_tokens: int = 0
    outstanding_revisions: Mapping[str, int] = field(default_factory=dict)
    """Revision -> jobs outstanding; each of them needs a slot now or soon."""
    device: Collection[str] = ()
    host: Collection[str] = ()
    cooling: Collection[str] = ()
    """Revisions whose load failed here a moment ago."""
    runs_alone: bool = False
    """It holds suspects: nothing may join."""
    is_canary: bool = False
    """Its host is in doubt: it gets one job at a time."""
    canary_wait_s: float = 0.0
    """So long it gets none at all."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Jobs to dispatch together to one worker."""

    incarnation: str
    jobs: tuple[PendingJob, ...]


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What one worker should do with its adapters until the next plan; a guess, never a promise."""

    incarnation: str
    prefetch: tuple[str, ...] = ()
    """Revisions that it will need, the next one first, with those that it has already: it keeps these."""
    drop: tuple[str, ...] = ()
    """Revisions to let go of, so that those it has not yet find room; the most dispensable first."""


@dataclass(frozen=True, slots=True)
class AdapterDemand:
    """The jobs that wait for one adapter."""

    revision: str
    num_jobs: int
    rank: int
    num_bytes: int


PolicyName = Literal["fair", "grouped", "fifo"]
"""`scheduler.policies.registry` says what each is."""


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The knobs of the policies; durations in seconds."""

    policy: PolicyName = "fair"
    starvation_s: tuple[float, float, float] = (5.0, 10.0, 30.0)
    """For each class: a job that waited longer goes before its tenant's other classes and residents."""
    turn_jobs: int = 4
    """Overdue jobs that one lane may place at its turn."""
    turns_per_bound: int = 8
    """A lane has such a turn so often within its bound; beyond that, class and residency decide again.

    So a lane that floods cannot keep a starving one waiting, however old its own jobs have become.
    """
    switches_per_bound: int = 16
    """A worker loads an adapter for the sake of an overdue job so often within the bound of normal jobs.

    When all jobs are overdue, as under a standing backlog, they would otherwise undo all grouping.
    """
    load_bytes_per_s: float = 100e6
    """What a worker loads adapters at, from a store to the device."""
    grouping_window: float = 8192.0
    """How far one tenant may run ahead of another so that adapters are loaded less often.

    In the cost of tokens (`scheduler.policies.fairness`), for a tenant of weight 1.
    """
    max_batch_jobs: int = 128
    max_set_aside: int = 64
    """Lanes and tenants that find no room before a round stops to look for more."""

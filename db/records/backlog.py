"""Headers of queued and running jobs, as the policies see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from lorayard.contract.job import Priority


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
    attempt: int
    group: UUID | None
    """Set for suspects: those of one group run together, with no other jobs."""
    request_bytes: int


class QueuedBlock(NamedTuple):
    """Some tenants' jobs among the queued ones that were looked at."""

    rows: list[PendingRow]
    reached: int
    """All of these tenants up to this `admit_seq` are among the rows."""
    is_last: bool
    """No queued job lies beyond it."""


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
    group: UUID | None
    leased_s: float


class QueuedGroup(NamedTuple):
    """The unfinished jobs of one pool, tenant and adapter, as people look at the queue."""

    pool: str
    tenant: str
    adapter: str | None
    queued: int
    leased: int
    oldest_s: float | None
    """How long the first of the queued has waited; None if none are."""

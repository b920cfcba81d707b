"""Predicts from the pace of ends and the tokens that wait: a job's place, its end, and when there is room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from scheduler.fleet import Fleet
from scheduler.instructions import Instructions
from scheduler.policies import PendingJob
from scheduler.policies.queue_order import FluidQueue, QueueOrder
from scheduler.queue_feed import QueueFeed
from scheduler.worker_state import Outstanding

RETRY_SHARE: Final = 0.05
"""Who met a full backlog or quota is asked back when so much of it will have drained."""

LOOK_S: Final = 0.25
"""So long what many tenants have waiting is not looked at again."""

MIN_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0


class QueuePlace(NamedTuple):
    """Where an unfinished job stands; None is not known."""

    position: int | None = None
    """Jobs that are foreseen to be given to workers before it; None if it does not wait for that."""
    eta_s: float | None = None
    """Seconds until its end."""


@dataclass(slots=True)
class Forecast:
    """Mutable: what the leader foresees; all of it is as good as the estimates of tokens at admission."""

    fleet: Fleet
    queue: QueueFeed
    instructions: Instructions
    clock: Callable[[], float]
    weights: Callable[[], Mapping[str, float]] | None = None
    """Tells the tenants' weights, if the policy is fair between them; one that it does not name has 1."""
    _seen: tuple[QueueOrder, float, FluidQueue] | None = None
    """What tenants had waiting at a look that is not long ago."""

    def place(self, job_id: UUID) -> QueuePlace:
        """Foresee when a job is given to a worker and when it ends."""
        if (job := self.queue.backlog.get(job_id)) is not None:
            ahead = self.queue.backlog.order.before(job, self._fluid())
            wait_s = self._seconds(ahead.tokens)
            own_s = self._run_s(job)
            return QueuePlace(ahead.jobs, None if wait_s is None or own_s is None else wait_s + own_s)
        if (held := self.fleet.outstanding_job(job_id)) is not None:
            return QueuePlace(eta_s=self._left_s(held))
        return QueuePlace()

    def retry_after_s(self, max_backlog: int) -> float:
        """Predict when a full backlog will have room again."""
        order = self.queue.backlog.order
        num_jobs = len(self.queue.backlog)
        return self._retry_s(max_backlog, order.tokens / num_jobs if num_jobs else None, 1.0)

    def tenant_retry_after_s(self, tenant: str, max_queued_jobs: int) -> float:
        """Predict when a tenant's full quota of queued jobs will have room again."""
        order = self.queue.backlog.order
        jobs, tokens = order.queued(tenant)
        if not jobs:
            return self._retry_s(max_queued_jobs, None, 1.0)
        share = tokens / order.tokens
        if (fluid := self._fluid()) is not None:
            weight = fluid.weights.get(tenant, 1.0)
            share = weight / max(weight, fluid.weight)  # what was looked at may have been empty
        return self._retry_s(max_queued_jobs, tokens / jobs, share)

    def _fluid(self) -> FluidQueue | None:
        if self.weights is None:
            return None
        order, now = self.queue.backlog.order, self.clock()
        if self._seen is None or self._seen[0] is not order or now - self._seen[1] >= LOOK_S:
            self._seen = (order, now, order.fluid(self.weights()))
        return self._seen[2]

    def _retry_s(self, max_jobs: int, tokens_each: float | None, share: float) -> float:
        """Clamp the time until a share of the pool's work has done so much of a bound."""
        if self.instructions.pauses.pool or not self.fleet.ready():
            return MAX_RETRY_S
        if tokens_each is None:
            return MIN_RETRY_S
        seconds = self._seconds(max(1.0, max_jobs * RETRY_SHARE) * tokens_each)
        return MIN_RETRY_S if seconds is None else min(MAX_RETRY_S, max(MIN_RETRY_S, seconds / share))

    def _seconds(self, tokens: float) -> float | None:
        """Predict how long all workers have to do with so many tokens."""
        if self.instructions.pauses.pool:
            return None
        per_s = self.fleet.tokens_per_s()
        return None if per_s is None else tokens / per_s

    def _run_s(self, job: PendingJob) -> float | None:
        """Predict how long a job is in its worker's hand, by the answers of its adapter if they are known."""
        tokens = self.queue.fairness.lengths.expected(job)
        run_s = tokens * self.fleet.output_pace.token_s
        return run_s or self._own_s(job.prompt_tokens + job.max_tokens)

    def _own_s(self, tokens: int) -> float | None:
        per_s = self.fleet.pace.tokens_per_s
        return None if per_s is None else tokens / per_s

    def _left_s(self, held: Outstanding) -> float | None:
        own_s = self._own_s(held.tokens)
        return None if own_s is None else max(0.0, own_s - (self.clock() - held.dispatched_at))

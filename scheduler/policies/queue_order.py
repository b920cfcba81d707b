"""Where a waiting job stands: how many jobs, and how many tokens, are served before it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from scheduler.policies.types import PendingJob

BLOCK_JOBS: Final = 1024
"""Admission numbers to a block: a position is a sum over the blocks before it, at 1,000,000 jobs 1,000."""


class Ahead(NamedTuple):
    """What is served before a job, as far as that can be foreseen."""

    jobs: int
    tokens: int


@dataclass(slots=True)
class _ClassJobs:
    """Mutable: the jobs of one class and tenant, by blocks of admission numbers."""

    waiting: dict[int, int] = field(default_factory=dict)
    """A bit for each job that waits, so that a job costs a bit, not an object."""
    sums: dict[int, int] = field(default_factory=dict)
    """Their tokens."""
    jobs: int = 0
    tokens: int = 0

    def change(self, admit_seq: int, tokens: int, step: int) -> None:
        block = admit_seq // BLOCK_JOBS
        waiting = self.waiting.get(block, 0) ^ (1 << admit_seq % BLOCK_JOBS)
        if waiting:
            self.waiting[block] = waiting
            self.sums[block] = self.sums.get(block, 0) + tokens
        else:
            del self.waiting[block], self.sums[block]
        self.jobs += step
        self.tokens += tokens

    def before(self, admit_seq: int) -> Ahead:
        own = admit_seq // BLOCK_JOBS
        earlier = [block for block in self.waiting if block < own]
        jobs = sum(self.waiting[block].bit_count() for block in earlier)
        tokens = sum(self.sums[block] for block in earlier)
        if waiting := self.waiting.get(own):
            in_block = (waiting & ((1 << admit_seq % BLOCK_JOBS) - 1)).bit_count()
            # Of the tokens in the job's own block only the sum is known.
            jobs, tokens = jobs + in_block, tokens + self.sums[own] * in_block // waiting.bit_count()
        return Ahead(jobs, tokens)


@dataclass(slots=True)
class _TenantJobs:
    """Mutable: the jobs of one tenant, by their class."""

    classes: dict[int, _ClassJobs] = field(default_factory=dict)
    jobs: int = 0
    tokens: int = 0

    def change(self, job: PendingJob, tokens: int, step: int) -> None:
        queue = self.classes.get(job.priority)
        if queue is None:
            queue = self.classes[job.priority] = _ClassJobs()
        queue.change(job.admit_seq, tokens, step)
        self.jobs += step
        self.tokens += tokens

    def before(self, job: PendingJob) -> Ahead:
        jobs = tokens = 0
        for priority, queue in self.classes.items():
            if priority <= job.priority:
                same = priority == job.priority
                ahead = queue.before(job.admit_seq) if same else Ahead(queue.jobs, queue.tokens)
                jobs, tokens = jobs + ahead.jobs, tokens + ahead.tokens
        return Ahead(jobs, tokens)


class QueueOrder:
    """Mutable: adding and removing a job cost O(1), a position a sum over the blocks of a tenant."""

    def __init__(self) -> None:
        self._tenants: dict[str, _TenantJobs] = {}
        self.tokens = 0
        """Of all jobs, as they were estimated at admission."""

    def add(self, job: PendingJob) -> None:
        """Let a job stand in its place; it must not be here."""
        queue = self._tenants.get(job.tenant)
        if queue is None:
            queue = self._tenants[job.tenant] = _TenantJobs()
        tokens = job.prompt_tokens + job.max_tokens
        queue.change(job, tokens, 1)
        self.tokens += tokens

    def remove(self, job: PendingJob) -> None:
        """Take out a job that is here."""
        queue = self._tenants[job.tenant]
        tokens = job.prompt_tokens + job.max_tokens
        queue.change(job, -tokens, -1)
        self.tokens -= tokens
        if not queue.jobs:
            del self._tenants[job.tenant]

    def queued(self, tenant: str) -> Ahead:
        """Count what waits of one tenant."""
        queue = self._tenants.get(tenant)
        return Ahead(queue.jobs, queue.tokens) if queue else Ahead(0, 0)

    def fluid(self, weights: Mapping[str, float]) -> FluidQueue:
        """Look at all tenants at once, for many positions; one that is not named weighs 1."""
        found = [
            (queue.tokens / weight, queue.jobs, queue.tokens, weight)
            for tenant, queue in self._tenants.items()
            for weight in (weights.get(tenant, 1.0),)
        ]
        return FluidQueue(weights, sorted(found))

    def before(self, job: PendingJob, fluid: FluidQueue | None = None) -> Ahead:
        """Foresee what is served before a waiting job.

        Without `fluid` jobs are served by class and admission, whoever's they are. With it tenants are served
        side by side, each in proportion to its weight: until the tenant's jobs before this one are done,
        every other gets its share of as many tokens, or is done before (generalised processor sharing).
        """
        if fluid is None:
            found = [queue.before(job) for queue in self._tenants.values()]
            return Ahead(sum(one.jobs for one in found), sum(one.tokens for one in found))
        queue = self._tenants[job.tenant]
        own = queue.before(job)
        jobs, tokens = fluid.served(own.tokens / fluid.weights.get(job.tenant, 1.0))
        # The tenant itself is among them: as many tokens as stand before this job, and jobs at their average.
        others = max(0.0, jobs - queue.jobs * own.tokens / (queue.tokens or 1))
        return Ahead(own.jobs + round(others), max(own.tokens, round(tokens)))


class FluidQueue:
    """What all tenants have waiting, in the order in which they are done if they are served side by side."""

    def __init__(
        self, weights: Mapping[str, float], tenants: Sequence[tuple[float, int, int, float]]
    ) -> None:
        """`tenants`: of each its tokens by its weight, its jobs, its tokens, and its weight; sorted."""
        self.weights = weights
        self._done_at = [done_at for done_at, _, _, _ in tenants]
        self._jobs = [0, *accumulate(jobs for _, jobs, _, _ in tenants)]
        self._tokens = [0, *accumulate(tokens for _, _, tokens, _ in tenants)]
        backwards = tenants[::-1]
        self._weight = [0.0, *accumulate(weight for _, _, _, weight in backwards)][::-1]
        rates = (jobs * weight / (tokens or 1) for _, jobs, tokens, weight in backwards)
        self._job_rate = [0.0, *accumulate(rates)][::-1]

    @property
    def weight(self) -> float:
        """Of all that have something waiting."""
        return self._weight[0]

    def served(self, per_weight: float) -> tuple[float, float]:
        """Tell the jobs and tokens that all have got once each got so many by its weight, or is done."""
        done = bisect_right(self._done_at, per_weight)
        jobs = self._jobs[done] + per_weight * self._job_rate[done]
        return jobs, self._tokens[done] + per_weight * self._weight[done]

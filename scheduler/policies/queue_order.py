"""Where a waiting job stands: how many jobs, and how many tokens, are served before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from scheduler.policies.types import PendingJob

BLOCK_JOBS: Final = 1024
"""Admission numbers to a block: a position is a sum over the blocks before it, at 1,000,000 jobs 1,000."""


class Ahead(NamedTuple):
    """What is served before a job, as far as that can be foreseen."""

    jobs: int
    tokens: int


@dataclass(slots=True)
class _Block:
    """Mutable: a bit for each job that waits, so that a job costs a bit, not an object."""

    waiting: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _ClassQueue:
    """Mutable: the jobs of one class and tenant, by admission."""

    blocks: dict[int, _Block] = field(default_factory=dict)
    jobs: int = 0
    tokens: int = 0

    def change(self, admit_seq: int, tokens: int, step: int) -> None:
        number, place = divmod(admit_seq, BLOCK_JOBS)
        block = self.blocks.setdefault(number, _Block())
        block.waiting ^= 1 << place
        block.tokens += step * tokens
        self.jobs += step
        self.tokens += step * tokens
        if not block.waiting:
            del self.blocks[number]

    def before(self, admit_seq: int) -> Ahead:
        number, place = divmod(admit_seq, BLOCK_JOBS)
        earlier = [block for at, block in self.blocks.items() if at < number]
        jobs = sum(block.waiting.bit_count() for block in earlier)
        tokens = sum(block.tokens for block in earlier)
        if (own := self.blocks.get(number)) is not None:
            in_block = (own.waiting & ((1 << place) - 1)).bit_count()
            # Of the tokens in the job's own block only the sum is known.
            jobs, tokens = jobs + in_block, tokens + own.tokens * in_block // own.waiting.bit_count()
        return Ahead(jobs, tokens)


@dataclass(slots=True)
class _TenantQueue:
    """Mutable: the jobs of one tenant, by their class."""

    classes: dict[int, _ClassQueue] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        return sum(queue.jobs for queue in self.classes.values())

    @property
    def tokens(self) -> int:
        return sum(queue.tokens for queue in self.classes.values())

    def change(self, job: PendingJob, tokens: int, step: int) -> None:
        self.classes.setdefault(job.priority, _ClassQueue()).change(job.admit_seq, tokens, step)

    def before(self, job: PendingJob) -> Ahead:
        jobs = tokens = 0
        for priority, queue in self.classes.items():
            if priority <= job.priority:
                same = priority == job.priority
                ahead = queue.before(job.admit_seq) if same else Ahead(queue.jobs, queue.tokens)
                jobs, tokens = jobs + ahead.jobs, tokens + ahead.tokens
        return Ahead(jobs, tokens)


class QueueOrder:
    """Mutable: adding and removing a job cost O(1), a position a sum over blocks and tenants."""

    def __init__(self) -> None:
        self._tenants: dict[str, _TenantQueue] = {}
        self.tokens = 0
        """Of all jobs, as they were estimated at admission."""

    def add(self, job: PendingJob) -> None:
        """Let a job stand in its place; it must not be here."""
        self._tenants.setdefault(job.tenant, _TenantQueue())
        self._change(job, 1)

    def remove(self, job: PendingJob) -> None:
        """Take out a job that is here."""
        self._change(job, -1)
        if not self._tenants[job.tenant].jobs:
            del self._tenants[job.tenant]

    def queued(self, tenant: str) -> Ahead:
        """Count what waits of one tenant."""
        queue = self._tenants.get(tenant)
        return Ahead(queue.jobs, queue.tokens) if queue else Ahead(0, 0)

    def weight(self, weights: Mapping[str, float]) -> float:
        """Add up the weights of the tenants that have jobs here; one that is not named has 1."""
        return sum(weights.get(tenant, 1.0) for tenant in self._tenants)

    def before(self, job: PendingJob, weights: Mapping[str, float] | None = None) -> Ahead:
        """Foresee what is served before a waiting job.

        Without weights jobs are served by class and admission, whoever's they are. With weights tenants are
        served side by side, each in proportion to its own: until the tenant's jobs before this one are done,
        every other gets its share of as many tokens, or is done before (generalised processor sharing).
        """
        if weights is None:
            found = [queue.before(job) for queue in self._tenants.values()]
            return Ahead(sum(one.jobs for one in found), sum(one.tokens for one in found))
        own = self._tenants[job.tenant].before(job)
        per_weight = own.tokens / weights.get(job.tenant, 1.0)
        jobs, tokens = float(own.jobs), float(own.tokens)
        for tenant, queue in self._tenants.items():
            if tenant != job.tenant:
                served = min(queue.tokens, per_weight * weights.get(tenant, 1.0))
                jobs += queue.jobs * served / max(1, queue.tokens)
                tokens += served
        return Ahead(round(jobs), round(tokens))

    def _change(self, job: PendingJob, step: int) -> None:
        tokens = job.prompt_tokens + job.max_tokens
        self._tenants[job.tenant].change(job, tokens, step)
        self.tokens += step * tokens

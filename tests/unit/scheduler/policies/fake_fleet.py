"""Drives a policy with a clock and workers that run what they get for so many rounds; for tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from scheduler.policies import Backlog, PendingJob, PlannedBatch, WorkerCapacity, WorkerView, plan
from tests.unit.scheduler.policies.making import CAPACITY, worker


@dataclass
class FakeFleet:
    """A job ends `run_rounds` after the round that planned it, with `output` tokens (None: all it may)."""

    backlog: Backlog
    num_workers: int = 1
    capacity: WorkerCapacity = CAPACITY
    run_rounds: int = 1
    round_s: float = 1.0
    output: int | None = None
    now: float = 0.0
    running: dict[UUID, tuple[str, int, PendingJob]] = field(default_factory=dict)
    resident: dict[str, list[str]] = field(default_factory=dict)
    num_loads: int = 0
    served: Counter[str] = field(default_factory=Counter)
    """Cost of what each tenant was given, at what it came to."""

    def round(self) -> list[PlannedBatch]:
        """End what is done, plan once, and let the time of a round pass."""
        for job_id, (name, left, job) in list(self.running.items()):
            self.running[job_id] = (name, left - 1, job)
            if left <= 1:
                del self.running[job_id]
                self.backlog.fairness.settle(job_id, job.prompt_tokens, self._written(job))
        batches = plan(self.backlog, self.views(), self.now)
        for batch in batches:
            for job in batch.jobs:
                self._start(batch.incarnation, job)
        self.now += self.round_s
        return batches

    def views(self) -> list[WorkerView]:
        views = []
        for number in range(self.num_workers):
            name = f"w{number}"
            here = [job for where, _, job in self.running.values() if where == name]
            counts = Counter(job.revision for job in here if job.revision)
            view = worker(
                name, self.capacity, outstanding=dict(counts), device=tuple(self.resident.get(name, ()))
            )
            views.append(view)
        return views

    def _start(self, name: str, job: PendingJob) -> None:
        self.running[job.job_id] = (name, self.run_rounds, job)
        self.served[job.tenant] += job.prompt_tokens + 2 * self._written(job)
        here = self.resident.setdefault(name, [])
        if job.revision is None:
            return
        if job.revision in here:
            here.remove(job.revision)
        else:
            self.num_loads += 1
        here.append(job.revision)
        del here[: -self.capacity.max_loras]

    def _written(self, job: PendingJob) -> int:
        return job.max_tokens if self.output is None else min(self.output, job.max_tokens)


def jobs_in(batches: list[PlannedBatch]) -> list[PendingJob]:
    return [job for batch in batches for job in batch.jobs]

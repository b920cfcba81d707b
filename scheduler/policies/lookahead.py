"""Tells workers which adapters to load ahead and which to let go of: the backlog is the known future.

What is needed last leaves first (Belady, IBM Systems Journal 5(2), 1966): only adapters that nothing waits
for are let go of, and of these any is as good as another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.policies.backlog import Backlog
from scheduler.policies.types import AdapterDemand, AdapterPlan, WorkerView

MAX_AHEAD_PER_WORKER: Final = 8
"""Adapters that are loaded ahead on one worker: further ones may never come to be needed there."""

ENOUGH_BATCHES: Final = 2
"""A worker with so many batches waiting for adapters that it has needs no other yet."""


def lookahead(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[AdapterPlan]:
    """Plan the adapters of every worker that has one or gets one; `now` as in `plan`.

    Each adapter that jobs wait for is kept where it is. A worker that will soon have run all jobs for its own
    loads others: those that nobody has, then those with more jobs than their holders soon run. Nothing is
    dropped but for what comes in its place.
    """
    del now  # the order of the backlog has it already
    workers = [_Loader(view) for view in views if view.capacity.max_loras > 0]
    _share_out(backlog, workers)
    if any(worker.is_short for worker in workers):
        for demand in backlog.demand(limit=len(workers) * MAX_AHEAD_PER_WORKER * 2):
            _assign(workers, demand)
    return [plan for worker in workers if (plan := worker.plan()) is not None]


def _share_out(backlog: Backlog, workers: Sequence[_Loader]) -> None:
    """Count the jobs that wait for adapters at hand, for each of several holders its part."""
    num_holders: dict[str, int] = {}
    for worker in workers:
        for revision in worker.at_hand:
            num_holders[revision] = num_holders.get(revision, 0) + 1
    for worker in workers:
        for revision in sorted(worker.at_hand):
            if num_jobs := backlog.num_jobs_of.get(revision, 0):
                worker.keep(revision, num_jobs / num_holders[revision])


def _assign(workers: Sequence[_Loader], demand: AdapterDemand) -> None:
    holders = [worker for worker in workers if demand.revision in worker.at_hand]
    num_seqs = sum(worker.view.capacity.max_num_seqs for worker in holders)
    if holders and demand.num_jobs <= ENOUGH_BATCHES * num_seqs:
        return
    able = [worker for worker in workers if worker.is_short and worker.can_load(demand)]
    if chosen := min(able, key=_Loader.order, default=None):
        chosen.load(demand)


class _Loader:
    """Mutable: one worker's adapters, and what it will need of those that wait."""

    def __init__(self, view: WorkerView) -> None:
        self.view = view
        self.at_hand = {*view.device, *view.host, *view.outstanding_revisions}
        self._kept: list[str] = []
        self._new: list[AdapterDemand] = []
        self._num_jobs = 0.0

    @property
    def is_short(self) -> bool:
        """Whether it will soon have run all jobs for the adapters that it has or gets."""
        return self._num_jobs < ENOUGH_BATCHES * self.view.capacity.max_num_seqs

    def order(self) -> tuple[float, int, str]:
        """Sort key of who gets the next adapter."""
        return (self._num_jobs, len(self._new), self.view.incarnation)

    def can_load(self, demand: AdapterDemand) -> bool:
        return (
            len(self._new) < min(MAX_AHEAD_PER_WORKER, self.view.capacity.max_loras)
            and demand.revision not in self.at_hand
            and demand.rank <= self.view.capacity.max_lora_rank
            and demand.revision not in self.view.cooling
        )

    def keep(self, revision: str, num_jobs: float) -> None:
        self._kept.append(revision)
        self._num_jobs += num_jobs

    def load(self, demand: AdapterDemand) -> None:
        self._new.append(demand)
        self._num_jobs += demand.num_jobs

    def plan(self) -> AdapterPlan | None:
        idle = sorted(self.at_hand - set(self._kept) - self.view.outstanding_revisions.keys())
        wanted = [*self._kept, *(demand.revision for demand in self._new)]
        if not wanted:
            return None
        return AdapterPlan(self.view.incarnation, tuple(wanted), tuple(idle[: len(self._new)]))

"""Tells workers which adapters to load ahead and which to let go of: the backlog is the known future.

What is needed last leaves first (Belady, IBM Systems Journal 5(2), 1966); of adapters that nothing waits for,
the largest, so that few leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.policies.backlog import Backlog
from scheduler.policies.types import AdapterDemand, AdapterPlan, WorkerView

MAX_AHEAD_PER_WORKER: Final = 8
"""Adapters that are loaded ahead on one worker: further ones may never come to be needed there."""


def lookahead(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[AdapterPlan]:
    """Plan the adapters of every worker that has one or gets one; `now` as in `plan`.

    Each adapter that jobs wait for is kept where it is, and goes to one more worker if more jobs wait than
    those who have it can run. Nothing is dropped but for what comes in its place.
    """
    del now  # the order of the backlog has it already
    workers = [_Loader(view) for view in views if view.capacity.max_loras > 0]
    if not workers:
        return []
    for demand in backlog.demand(limit=len(workers) * MAX_AHEAD_PER_WORKER * 2):
        _assign(workers, demand)
    return [plan for worker in workers if (plan := worker.plan()) is not None]


def _assign(workers: Sequence[_Loader], demand: AdapterDemand) -> None:
    able = [worker for worker in workers if worker.can_run(demand)]
    holders = [worker for worker in able if demand.revision in worker.at_hand]
    num_seqs = sum(worker.view.capacity.max_num_seqs for worker in holders)
    for worker in holders:
        worker.expect(demand)
    if num_seqs < demand.num_jobs:
        others = [worker for worker in able if worker.has_room and demand.revision not in worker.at_hand]
        if chosen := min(others, key=_Loader.order, default=None):
            chosen.expect(demand)


class _Loader:
    """Mutable: one worker's adapters, and what it will need of those that wait."""

    def __init__(self, view: WorkerView) -> None:
        self.view = view
        self.at_hand = {*view.device, *view.host, *view.outstanding_revisions}
        self._expected: dict[str, AdapterDemand] = {}
        self._num_new = 0
        self._new_bytes = 0

    @property
    def has_room(self) -> bool:
        return self._num_new < min(MAX_AHEAD_PER_WORKER, self.view.capacity.max_loras)

    def order(self) -> tuple[int, int, str]:
        """Sort key of who gets the next adapter."""
        return (self._num_new, self._new_bytes, self.view.incarnation)

    def can_run(self, demand: AdapterDemand) -> bool:
        return demand.rank <= self.view.capacity.max_lora_rank and demand.revision not in self.view.cooling

    def expect(self, demand: AdapterDemand) -> None:
        self._expected[demand.revision] = demand
        if demand.revision not in self.at_hand:
            self._num_new += 1
            self._new_bytes += demand.num_bytes

    def plan(self) -> AdapterPlan | None:
        idle = sorted(self.at_hand - self._expected.keys() - self.view.outstanding_revisions.keys())
        drop = tuple(idle[: self._num_new])
        if not self._expected and not drop:
            return None
        return AdapterPlan(self.view.incarnation, tuple(self._expected), drop)

"""First in, first out: strictly, and as vLLM's scheduler passes over what finds no slot."""

from __future__ import annotations

from collections import deque

from benchmarks.policies.policy import Setting
from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.rivals.rule import EngineRule, PoolRule
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.workload import Job


class Fifo(PoolRule):
    """The oldest job goes to the worker with most room that has a slot for it; until then all others wait."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._order: deque[Job] = deque()

    def enqueue(self, job: Job) -> None:
        """Put a job at the end."""
        self._order.append(job)

    def fill(self, budgets: list[Budget], now: float) -> None:  # noqa: ARG002 - no rule but age
        """Place from the head on."""
        order = self._order
        while order:
            job = order[0]
            if job.number in self.waiting:
                able = [budget for budget in budgets if budget.has_place(job) and budget.has_slot(job)]
                if not able:
                    return
                max(able, key=lambda budget: budget.free_seqs).place(job)
                del self.waiting[job.number]
            order.popleft()


class FifoLru(EngineRule):
    """vLLM (v1, `max_loras`): waiting jobs are scanned in order, those with an adapter too many passed over.

    A job that finds no blocks ends the scan. Slots and host cache evict the least recently used.
    """

    def choose(self, queue: WaitingList, budget: Budget) -> None:
        """Scan once."""
        queue.take_in_turn(budget.lanes(queue.lanes.keys()), budget)

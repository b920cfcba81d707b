"""Earliest deadline first by one who knows how long each job will take."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from benchmarks.policies.policy import Dispatch, Setting
from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.rivals.rule import PoolRule
from benchmarks.policies.workload import Job
from scheduler.policies import WorkerView


class ClairvoyantEdf(PoolRule):
    """The earliest deadline that can still be kept, on the worker where its adapter is nearest.

    A job is passed over for good once the batch of the emptiest worker would end it too late. One without a
    slot waits, others go first.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._mean_rank = sum(setting.pool.ranks) / len(setting.pool.ranks)
        self._heap: list[tuple[float, int, Job]] = []

    def enqueue(self, job: Job) -> None:
        """Put a job in the order of deadlines; one without comes last."""
        deadline = float("inf") if job.deadline_at is None else job.deadline_at
        heapq.heappush(self._heap, (deadline, job.number, job))

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Fill the workers' running capacity: what waits on a worker waits in no order of deadlines."""
        budgets = [Budget(view) for view in views]
        for budget in budgets:
            budget.free_seqs = max(0, budget.view.capacity.max_num_seqs - budget.view.num_outstanding)
        if any(budget.free_seqs > 0 for budget in budgets):
            self.fill(budgets, now)
        return [Dispatch(budget.view.incarnation, budget.placed) for budget in budgets if budget.placed]

    def fill(self, budgets: list[Budget], now: float) -> None:
        """Place by deadline."""
        aside: list[tuple[float, int, Job]] = []
        while self._heap and any(budget.free_seqs > 0 for budget in budgets):
            entry = heapq.heappop(self._heap)
            deadline, number, job = entry
            if number not in self.waiting:
                continue
            if now + self._duration_s(job, budgets) > deadline:
                continue  # it stays among the waiting until it expires
            able = [budget for budget in budgets if budget.has_place(job) and budget.has_slot(job)]
            if not able:
                aside.append(entry)
                continue
            min(able, key=lambda budget: (_tier(budget, job), -budget.free_seqs)).place(job)
            del self.waiting[number]
        for entry in aside:
            heapq.heappush(self._heap, entry)

    def _duration_s(self, job: Job, budgets: list[Budget]) -> float:
        """Tell how long a job takes beside what the emptiest worker runs, if each has its own adapter."""
        pool, hardware = self.setting.pool, self.setting.hardware
        num_rows = pool.max_num_seqs - max(budget.free_seqs for budget in budgets) + 1
        num_adapters = min(num_rows, pool.slots)
        step_s = hardware.step_time_s(num_rows, num_adapters, round(num_adapters * self._mean_rank))
        prompt_s = hardware.prompt_token_s * job.prompt_tokens
        return hardware.dispatch_s + prompt_s + step_s * job.output_tokens


def _tier(budget: Budget, job: Job) -> int:
    """Tell how near the job's adapter is: outstanding or in a slot, in the host cache, or neither."""
    name = job.adapter.name
    if name in budget.revisions or name in budget.view.device:
        return 0
    return 1 if name in budget.view.host else 2

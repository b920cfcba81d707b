"""What all rivals share: they learn from no end, hint at nothing and predict nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from benchmarks.policies.policy import Dispatch, Hint, Setting
from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.workload import Job
from scheduler.policies import WorkerView


class Rule(ABC):
    """Mutable: waiting jobs, and the rule by which room is filled. A new leader goes on."""

    is_timed = False
    grouping_window = 0.0

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def __len__(self) -> int:
        """Count the waiting jobs."""

    @abstractmethod
    def fill(self, budgets: list[Budget], now: float) -> None:
        """Place what the rule chooses."""

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Fill the workers' room by the rule."""
        budgets = [Budget(view) for view in views]
        if any(budget.free_seqs > 0 for budget in budgets):
            self.fill(budgets, now)
        return [Dispatch(budget.view.incarnation, budget.placed) for budget in budgets if budget.placed]

    def take_refused(self) -> Sequence[Job]:
        """Refuse nothing."""
        return ()

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:  # noqa: B027 - most have no use
        """Learn nothing."""

    def hints(self, views: Sequence[WorkerView], now: float) -> Sequence[Hint]:  # noqa: ARG002 - what all are asked
        """Hint at nothing."""
        return ()

    def eta_s(self, job: Job, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict nothing."""
        return None

    def retry_after_s(self, num_jobs: int, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict nothing."""
        return None

    def succeed(self, now: float) -> Self:  # noqa: ARG002
        """Hand everything over."""
        return self


class PoolRule(Rule):
    """Mutable: one order of waiting jobs for the whole pool."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.waiting: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, job: Job, now: float) -> None:  # noqa: ARG002
        """Let a job wait."""
        self.waiting[job.number] = job
        self.enqueue(job)

    @abstractmethod
    def enqueue(self, job: Job) -> None:
        """Put a job where the order has it; one that is no longer waiting is passed over later."""

    def remove(self, job: Job) -> None:
        """Forget a waiting job."""
        del self.waiting[job.number]


class EngineRule(Rule):
    """Mutable: a scheduler of one engine, behind a router that gives each job to the shortest queue."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.queues = {name: WaitingList() for name in setting.workers}
        self._num_jobs = dict.fromkeys(setting.workers, 0)
        """Waiting and outstanding."""
        self._worker_of: dict[int, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def add(self, job: Job, now: float) -> None:  # noqa: ARG002
        """Choose the engine with the fewest jobs; of equals, the first."""
        name = min(self._num_jobs, key=self._num_jobs.__getitem__)
        self._num_jobs[name] += 1
        self._worker_of[job.number] = name
        self.queues[name].add(job)

    def remove(self, job: Job) -> None:
        """Forget a waiting job."""
        name = self._worker_of.pop(job.number)
        self._num_jobs[name] -= 1
        self.queues[name].remove(job)

    def fill(self, budgets: list[Budget], now: float) -> None:  # noqa: ARG002
        """Let each engine fill its own room."""
        for budget in budgets:
            queue = self.queues[budget.view.incarnation]
            if budget.free_seqs > 0 and len(queue):
                self.choose(queue, budget)

    @abstractmethod
    def choose(self, queue: WaitingList, budget: Budget) -> None:
        """Place jobs of one engine's queue."""

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:  # noqa: ARG002
        """Count them off."""
        self._num_jobs[worker] -= len(jobs)
        for job in jobs:
            self._worker_of.pop(job.number, None)

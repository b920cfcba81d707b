"""What all rivals share: they learn from no end, hint at nothing and predict nothing."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.policies.rivals.room import Room
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.seat import Dispatch, Hint, Setting
from benchmarks.policies.workload import Job
from scheduler.policies import WorkerView


class Rule:
    """Mutable: one list of waiting jobs for the whole pool."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.waiting = WaitingList()

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, job: Job, now: float) -> None:  # noqa: ARG002 - what the seat hands over
        """Let a job wait."""
        self.waiting.add(job)

    def remove(self, job: Job) -> None:
        """Forget a waiting job."""
        self.waiting.remove(job)

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Fill the workers' room by the rule."""
        rooms = [Room(view) for view in views]
        if any(room.free_seqs > 0 for room in rooms):
            self.fill(rooms, now)
        return [Dispatch(room.view.incarnation, room.placed) for room in rooms if room.placed]

    def fill(self, rooms: list[Room], now: float) -> None:
        """Place what the rule chooses."""
        raise NotImplementedError

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:
        """Learn nothing."""

    def hints(self, views: Sequence[WorkerView], now: float) -> Sequence[Hint]:  # noqa: ARG002
        """Hint at nothing."""
        return ()

    def eta_s(self, job: Job, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict nothing."""
        return None

    def retry_after_s(self, num_jobs: int, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict nothing."""
        return None

    def succeed(self, now: float) -> Rule:  # noqa: ARG002
        """Hand over the list."""
        successor = type(self)(self.setting)
        for job in self.waiting:
            successor.waiting.add(job)
        return successor


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

    def fill(self, rooms: list[Room], now: float) -> None:  # noqa: ARG002
        """Let each engine fill its own room."""
        for room in rooms:
            queue = self.queues[room.view.incarnation]
            if room.free_seqs > 0 and len(queue):
                self.choose(queue, room)

    def choose(self, queue: WaitingList, room: Room) -> None:
        """Place jobs of one engine's queue."""
        raise NotImplementedError

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:  # noqa: ARG002
        """Count them off."""
        self._num_jobs[worker] -= len(jobs)
        for job in jobs:
            self._worker_of.pop(job.number, None)

    def succeed(self, now: float) -> EngineRule:  # noqa: ARG002
        """Go on: engines outlive a leader."""
        return self

"""One engine's waiting jobs by adapter, in order: what a scan of one list finds, without the scan."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.workload import Job


class WaitingList:
    """Mutable: jobs by arrival. A rule that passes over an adapter passes over all its jobs."""

    def __init__(self) -> None:
        self.lanes: dict[str, deque[tuple[int, Job]]] = {}
        """By adapter, none of them empty; each job with its place in the whole list."""
        self.count = 0
        self._num_added = 0

    def __len__(self) -> int:
        return self.count

    def add(self, job: Job) -> None:
        """Append a job."""
        self._num_added += 1
        self.count += 1
        name = job.adapter.name
        if name in self.lanes:
            self.lanes[name].append((self._num_added, job))
        else:
            self.lanes[name] = deque([(self._num_added, job)])

    def remove(self, job: Job) -> None:
        """Forget a job, wherever it stands."""
        lane = self.lanes[job.adapter.name]
        lane.remove(next(entry for entry in lane if entry[1] is job))
        self._close_if_empty(job.adapter.name)
        self.count -= 1

    def num_of(self, name: str) -> int:
        """Count an adapter's jobs."""
        return len(self.lanes.get(name, ()))

    def first(self, count: int) -> list[Job]:
        """List the oldest jobs."""
        heads: Iterator[tuple[int, Job]] = heapq.merge(*self.lanes.values(), key=lambda entry: entry[0])
        return [job for _, (_, job) in zip(range(count), heads, strict=False)]

    def take_in_turn(self, names: Iterable[str], budget: Budget, *, passes_over: bool = True) -> None:
        """Place jobs of some adapters, oldest first, until one finds no sequence or tokens.

        One that finds no slot is passed over, or ends the scan as well.
        """
        heap = [(self.lanes[name][0][0], name) for name in names if name in self.lanes]
        heapq.heapify(heap)
        while heap:
            name = heap[0][1]
            lane = self.lanes[name]
            job = lane[0][1]
            if not budget.has_place(job):
                return
            if budget.has_slot(job):
                budget.place(job)
                lane.popleft()
                self.count -= 1
                if not self._close_if_empty(name):
                    heapq.heapreplace(heap, (lane[0][0], name))
                    continue
            elif not passes_over:
                return
            heapq.heappop(heap)

    def _close_if_empty(self, name: str) -> bool:
        if self.lanes[name]:
            return False
        del self.lanes[name]
        return True

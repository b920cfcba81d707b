"""Waiting jobs in the order of their arrival, by adapter: what a scan of one list finds, without the scan."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from benchmarks.policies.workload import Job


class WaitingList:
    """Mutable: jobs by arrival. A rule that passes over an adapter passes over all its jobs."""

    def __init__(self) -> None:
        self.lanes: dict[str, deque[tuple[int, Job]]] = {}
        """By adapter; each job with its place in the whole list."""
        self.count = 0
        self._gone: set[int] = set()
        self._num_added = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Job]:
        """Iterate over all jobs in order."""
        pairs = sorted(pair for name in self.lanes for pair in self._live(name))
        return (job for _, job in pairs)

    def add(self, job: Job) -> None:
        """Append a job."""
        self._num_added += 1
        self.lanes.setdefault(job.adapter.name, deque()).append((self._num_added, job))
        self.count += 1

    def remove(self, job: Job) -> None:
        """Forget a job, wherever it stands."""
        self._gone.add(job.number)
        self.count -= 1

    def num_of(self, name: str) -> int:
        """Count an adapter's jobs."""
        return sum(1 for _ in self._live(name)) if self._gone else len(self.lanes.get(name, ()))

    def first(self, count: int) -> list[Job]:
        """List the oldest jobs."""
        heads = (self._live(name) for name in self.lanes)
        return [job for _, (_, job) in zip(range(count), heapq.merge(*heads), strict=False)]

    def scan(self, names: Iterable[str], visit: Callable[[Job], bool | None]) -> None:
        """Visit jobs of some adapters, oldest first. True takes the job; False passes over its adapter.

        None ends the scan.
        """
        heap = [(lane[0][0], name) for name in names if (lane := self._lane(name))]
        heapq.heapify(heap)
        while heap:
            _, name = heap[0]
            lane = self.lanes[name]
            taken = visit(lane[0][1])
            if taken is None:
                return
            if taken:
                lane.popleft()
                self.count -= 1
            if taken and (rest := self._lane(name)):
                heapq.heapreplace(heap, (rest[0][0], name))
            else:
                heapq.heappop(heap)

    def _live(self, name: str) -> Iterator[tuple[int, Job]]:
        return (pair for pair in self.lanes.get(name, ()) if pair[1].number not in self._gone)

    def _lane(self, name: str) -> deque[tuple[int, Job]] | None:
        """Return an adapter's lane with a job that waits at its head; None if it has none."""
        lane = self.lanes.get(name)
        while lane:
            if lane[0][1].number not in self._gone:
                return lane
            self._gone.discard(lane.popleft()[1].number)
        self.lanes.pop(name, None)
        return None

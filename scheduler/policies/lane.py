"""Lanes of the backlog: the waiting jobs of one class and revision, oldest first."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from scheduler.policies.types import JobOrder, PendingJob, Revision


class LaneKey(NamedTuple):
    """By time; the head's admission sequence settles ties."""

    at: float
    admit_seq: int


class LaneName(NamedTuple):
    """Which jobs share a lane."""

    priority: int
    revision: Revision


class Lane:
    """Mutable: a heap whose removed jobs stay until they surface."""

    def __init__(self, name: LaneName) -> None:
        self.name = name
        self.turn_at = float("-inf")
        """Before this, the lane has had its share of turns for the overdue."""
        self._heap: list[tuple[JobOrder, int, PendingJob]] = []
        self._live: dict[UUID, PendingJob] = {}
        self._pushes = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def push(self, job: PendingJob) -> None:
        """Put a job in its place."""
        self._live[job.job_id] = job
        # The count keeps two entries of one job, gone and come back, from being compared further.
        heapq.heappush(self._heap, (job.order, next(self._pushes), job))

    def remove(self, job: PendingJob) -> None:
        """Take a job out, wherever it stands."""
        self._live.pop(job.job_id, None)

    def head(self) -> PendingJob | None:
        """Show the oldest job."""
        while self._heap:
            job = self._heap[0][2]
            if self._live.get(job.job_id) is job:
                return job
            heapq.heappop(self._heap)
        return None


class LaneQueue:
    """Mutable: lanes by a key that only grows while a head stays; stale entries stay until they surface."""

    def __init__(self, key: Callable[[Lane, PendingJob], LaneKey]) -> None:
        self._key = key
        self._heap: list[tuple[LaneKey, int, Lane]] = []
        self._pushes = itertools.count()

    def push(self, lane: Lane) -> None:
        """Note that a lane may have another key than before; an empty one is passed over."""
        head = lane.head()
        if head is not None:
            heapq.heappush(self._heap, (self._key(lane, head), next(self._pushes), lane))

    def first(self) -> tuple[LaneKey, Lane] | None:
        """Show the lane with the smallest key."""
        while self._heap:
            key, _, lane = self._heap[0]
            head = lane.head()
            if head is not None and key == self._key(lane, head):
                return key, lane
            heapq.heappop(self._heap)
        return None

    def set_aside(self, lane: Lane) -> None:
        """Pass a lane over until it is pushed again; it must be the first."""
        assert self._heap[0][2] is lane, "only the first lane can be set aside"
        while self._heap and self._heap[0][2] is lane:
            heapq.heappop(self._heap)

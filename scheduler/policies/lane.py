"""Lanes of the backlog: waiting jobs of one tenant, class and revision, the one whose turn is next ahead."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from scheduler.policies.types import PendingJob, Revision


class LaneName(NamedTuple):
    """Which jobs share a lane."""

    tenant: str
    priority: int
    revision: Revision
    has_deadlines: bool = False
    is_late: bool = False
    """Its answers would come after their deadlines."""


class Lane:
    """Mutable: a heap whose removed jobs stay until they surface, or until they are half of it."""

    __slots__ = ("_head", "_heap", "_pushes", "_waiting", "name", "num_jobs", "turn_at")

    def __init__(self, name: LaneName, waiting: Mapping[UUID, PendingJob]) -> None:
        """`waiting` has all jobs of the backlog: those that it has not are gone from here, too."""
        self.name = name
        self.turn_at = float("-inf")
        """Before this, the lane has had its share of turns for the overdue."""
        self.num_jobs = 0
        self._waiting = waiting
        self._head: PendingJob | None = None
        self._heap: list[tuple[float, int, int, PendingJob]] = []
        self._pushes = itertools.count()

    def push(self, job: PendingJob, at: float) -> None:
        """Put a job in its place by a time: since when it waits, or by when it has to start."""
        # The count keeps two entries of one job, gone and come back, from being compared further.
        entry = (at, job.admit_seq, next(self._pushes), job)
        heapq.heappush(self._heap, entry)
        self.num_jobs += 1
        if self._heap[0] is entry:
            self._head = job

    def forget(self, job: PendingJob) -> None:
        """Note that one of its jobs no longer waits."""
        self.num_jobs -= 1
        if job is self._head:
            self._head = None
        if len(self._heap) > 2 * self.num_jobs + 64:
            self._heap = [entry for entry in self._heap if self._is_waiting(entry[3])]
            heapq.heapify(self._heap)

    def head(self) -> PendingJob | None:
        """Show the job whose turn is next."""
        if self._head is not None:
            return self._head
        while self._heap:
            job = self._heap[0][3]
            if self._is_waiting(job):
                self._head = job
                return job
            heapq.heappop(self._heap)
        return None

    def head_at(self) -> float:
        """Tell the time that the head, which there must be, is in its place by."""
        return self._heap[0][0]

    def _is_waiting(self, job: PendingJob) -> bool:
        return self._waiting.get(job.job_id) is job

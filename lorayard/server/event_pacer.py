"""Keeps task events within what Flower can read, by leaving out whole jobs and never half of one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final
from uuid import UUID

WINDOW_S: Final = 1.0
MAX_REMEMBERED: Final = 200_000
HALVINGS: Final = 16


class EventPacer:
    """Mutable: decides once for each job whether its events are sent, from a hash of its id.

    The kept share is 1, 1/2, 1/4, ... of the ids, and each share lies within the one before: processes that
    have halved equally often keep the same jobs. It halves as soon as a window is over the budget, and
    doubles when a window used less than a quarter of it.
    """

    def __init__(self, max_events_per_s: float) -> None:
        self._budget = max_events_per_s * WINDOW_S
        self._halvings = 0
        self._window_started_at = float("-inf")
        self._offered = 0
        self._decided: OrderedDict[UUID, bool] = OrderedDict()
        self.num_dropped_jobs = 0

    def __len__(self) -> int:
        """Count the jobs decided on whose last event has not gone out."""
        return len(self._decided)

    def admits(self, job_id: UUID, now: float) -> bool:
        """Say whether an event of this job goes out; `now` is monotonic seconds."""
        if kept := self.shows(job_id):
            self._count(now)
        return kept

    def shows(self, job_id: UUID) -> bool:
        """Say whether a job's events go out, without counting one."""
        kept = self._decided.get(job_id)
        return self._decide(job_id) if kept is None else kept

    def leave_out(self, job_id: UUID) -> None:
        """Decide against a job whatever its id says."""
        if self._decided.pop(job_id, True):
            self.num_dropped_jobs += 1
        self._remember(job_id, kept=False)

    def forget(self, job_id: UUID) -> None:
        """Drop the decision on a job whose last event has gone out."""
        self._decided.pop(job_id, None)

    def _decide(self, job_id: UUID) -> bool:
        # The low bits of a UUIDv4, v5 or v7 are random, whatever the high ones are.
        kept = job_id.int & ((1 << self._halvings) - 1) == 0
        self.num_dropped_jobs += not kept
        self._remember(job_id, kept=kept)
        return kept

    def _remember(self, job_id: UUID, *, kept: bool) -> None:
        self._decided[job_id] = kept
        if len(self._decided) > MAX_REMEMBERED:
            self._decided.popitem(last=False)

    def _count(self, now: float) -> None:
        if now - self._window_started_at >= WINDOW_S:
            if self._offered < self._budget / 4:
                self._halvings = max(0, self._halvings - 1)
            self._window_started_at, self._offered = now, 0
        self._offered += 1
        if self._offered > self._budget:
            self._halvings = min(HALVINGS, self._halvings + 1)
            self._window_started_at, self._offered = now, 0

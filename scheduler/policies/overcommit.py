"""How much work a worker has ahead of it: enough that it never waits for a dispatch, and not more."""

from __future__ import annotations

import math
from typing import Final

RATE_MEMORY_S: Final = 2.0
"""Ends older than a few times this hardly count."""

MAX_AHEAD_FACTOR: Final = 8
"""Work ahead is at most so many times the running capacity, whatever the rate."""


class ServiceRate:
    """Mutable: jobs ended per second, as an exponentially decaying count."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = 0.0

    def observe(self, num_ended: int, now: float) -> None:
        """Count ends at a monotonic time."""
        self._weight = self._decayed(now) + num_ended
        self._at = now

    def per_s(self, now: float) -> float:
        """Tell the rate at a monotonic time."""
        return self._decayed(now) / RATE_MEMORY_S

    def _decayed(self, now: float) -> float:
        return self._weight * math.exp(-max(0.0, now - self._at) / RATE_MEMORY_S)


def target_seqs(max_num_seqs: int, jobs_per_s: float, overcommit_s: float) -> int:
    """Tell how many jobs a worker should have outstanding: what it runs, and `overcommit_s` of work."""
    ahead = min(math.ceil(jobs_per_s * overcommit_s), max_num_seqs * MAX_AHEAD_FACTOR)
    return max_num_seqs + ahead


def low_water(max_num_seqs: int, target: int) -> int:
    """Tell below how many outstanding jobs a worker is fed again: with half of its lead used up.

    Refilling after each end instead would send micro-batches of one job.
    """
    return max_num_seqs + (target - max_num_seqs + 1) // 2

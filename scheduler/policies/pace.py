"""How fast jobs go, learned from those that ended: what predictions of time are made of."""

from __future__ import annotations

import math
from typing import Final

MEMORY_S: Final = 60.0
"""Ends older than a few times this hardly count, once there are later ones."""

SHORTEST_S: Final = 1e-3


class JobPace:
    """Mutable: tokens a second of one job in a worker's hand, its wait there included.

    So many times the jobs outstanding is what all workers do in a second (Little's law): that holds from the
    first jobs that end, through lulls, and when workers come or go.
    """

    def __init__(self) -> None:
        self._weight_s = 0.0
        self._at = 0.0
        self.tokens_per_s: float | None = None
        """None until a job has ended."""

    @property
    def token_s(self) -> float:
        """Seconds for each token of a job; 0 is not known."""
        return 1 / self.tokens_per_s if self.tokens_per_s else 0.0

    def of(self, num_jobs: int) -> float | None:
        """Tell how many tokens a second so many jobs in workers' hands make; None if not known."""
        return (self.tokens_per_s or 0.0) * num_jobs or None

    def observe(self, tokens: int, in_hand_s: float, now: float) -> None:
        """Take in one job that has ended, at a monotonic time."""
        seconds = max(in_hand_s, SHORTEST_S)
        before = self._weight_s * math.exp(-max(0.0, now - self._at) / MEMORY_S)
        known = before * (self.tokens_per_s or 0.0)
        self._weight_s, self._at = before + seconds, now
        self.tokens_per_s = (known + tokens) / self._weight_s

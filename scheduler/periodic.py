"""Says when something that recurs is due, on the loop's own clock."""

from __future__ import annotations


class PeriodicTask:
    """Mutable: due at once, then each time the period has passed; later if the loop has nothing to do."""

    def __init__(self, period_s: float, idle_period_s: float | None = None) -> None:
        self._period_s = period_s
        self._idle_extra_s = 0.0 if idle_period_s is None else idle_period_s - period_s
        self._next_at = float("-inf")

    def is_due(self, now: float, *, is_idle: bool = False) -> bool:
        """Tell whether it is time, and begin the next period if so."""
        if now < self._next_at + (self._idle_extra_s if is_idle else 0.0):
            return False
        self._next_at = now + self._period_s
        return True

    def again_in(self, seconds: float, now: float) -> None:
        """Be due once so many seconds have passed, however long the period."""
        self._next_at = now + seconds

    def hasten(self) -> None:
        """Be due at the next look."""
        self._next_at = float("-inf")

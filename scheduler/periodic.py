"""Says when something that recurs is due, on the loop's own clock; and what recurs in the leader's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

IDLE_PERIOD_S: Final = 1.0
"""Of what recurs for the sake of jobs while none is queued or in a worker's hand."""

IDLE_LOOK_S: Final = 0.75
"""Of an idle leader's looks into the ledger: a pause that was set is heeded about a second later."""


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


@dataclass(slots=True)
class PeriodicTasks:
    """Mutable: what recurs in the loop."""

    hearing: PeriodicTask = field(default_factory=lambda: PeriodicTask(0.5, IDLE_PERIOD_S))
    reap: PeriodicTask = field(default_factory=lambda: PeriodicTask(0.25, IDLE_LOOK_S))
    publish: PeriodicTask = field(default_factory=lambda: PeriodicTask(0.5, IDLE_PERIOD_S))
    commands: PeriodicTask = field(default_factory=lambda: PeriodicTask(0.5, IDLE_PERIOD_S))
    reclaim: PeriodicTask = field(default_factory=lambda: PeriodicTask(2.0))
    publish_pool: PeriodicTask = field(default_factory=lambda: PeriodicTask(5.0))
    shares: PeriodicTask = field(default_factory=lambda: PeriodicTask(5.0, 15.0))
    forget_departed: PeriodicTask = field(default_factory=lambda: PeriodicTask(5.0))
    verify: PeriodicTask = field(default_factory=lambda: PeriodicTask(10.0))
    fold_usage: PeriodicTask = field(default_factory=lambda: PeriodicTask(60.0))
    retention: PeriodicTask = field(default_factory=lambda: PeriodicTask(60.0))
    collection: PeriodicTask = field(default_factory=lambda: PeriodicTask(600.0))

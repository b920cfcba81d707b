"""Decides when a process that died is started again: the longer it fails, the later."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0
# A process that ran this long was well: its next failure starts the count anew.
_HEALTHY_AFTER_S = 60.0


@dataclass(slots=True)
class _History:
    failures: int = 0
    started_at_s: float = 0.0
    due_at_s: float | None = None


class Backoff:
    """The restarts that are due, by name; the caller brings the clock."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def died(self, name: str, now_s: float) -> float | None:
        """Note a death and return the delay until the restart; None if it was noted before."""
        history = self._histories.setdefault(name, _History(started_at_s=now_s))
        if history.due_at_s is not None:
            return None
        if now_s - history.started_at_s >= _HEALTHY_AFTER_S:
            history.failures = 0
        delay_s = min(_FIRST_DELAY_S * 2.0**history.failures, _LONGEST_DELAY_S)
        history.failures += 1
        history.due_at_s = now_s + delay_s
        return delay_s

    @property
    def is_waiting(self) -> bool:
        """Whether any restart is planned."""
        return any(history.due_at_s is not None for history in self._histories.values())

    def forget(self, name: str) -> None:
        """Plan no restart of it."""
        self._histories.pop(name, None)

    def due(self, now_s: float) -> list[str]:
        """Return the names to start now, and note them as started."""
        names = [
            name for name, h in self._histories.items() if h.due_at_s is not None and h.due_at_s <= now_s
        ]
        for name in names:
            self._histories[name].due_at_s = None
            self._histories[name].started_at_s = now_s
        return names

"""Says how often something that failed may begin anew before whoever restarts it gives up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

MAX_RESTARTS: Final = 3
WINDOW_S: Final = 60.0
"""The bounds of a loop that failed for an unknown reason."""


class RestartBudget:
    """Mutable: so many restarts in any window of so many seconds, on the given clock."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_restarts: int = MAX_RESTARTS,
        window_s: float = WINDOW_S,
        taken_at: Iterable[float] = (),
    ) -> None:
        """`taken_at`: when restarts were taken before this object was made, on the same clock."""
        self._clock = clock
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._taken_at = deque(taken_at)

    @property
    def taken_at(self) -> tuple[float, ...]:
        """When the restarts were taken that still count."""
        return tuple(self._taken_at)

    def take(self) -> bool:
        """Use one restart up; False if none is left."""
        now = self._clock()
        while self._taken_at and now - self._taken_at[0] >= self._window_s:
            self._taken_at.popleft()
        if len(self._taken_at) >= self._max_restarts:
            return False
        self._taken_at.append(now)
        return True

"""Says how often a loop that failed for an unknown reason may begin anew before its process gives up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

MAX_RESTARTS: Final = 3
WINDOW_S: Final = 60.0


class RestartBudget:
    """Mutable: `MAX_RESTARTS` in any `WINDOW_S`, on the given clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken_at: deque[float] = deque()

    def take(self) -> bool:
        """Use one restart up; False if none is left."""
        now = self._clock()
        while self._taken_at and now - self._taken_at[0] >= WINDOW_S:
            self._taken_at.popleft()
        if len(self._taken_at) >= MAX_RESTARTS:
            return False
        self._taken_at.append(now)
        return True

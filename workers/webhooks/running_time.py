"""Measures time in which the event loop ran: nobody is called slow for time in which we stood still."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

LOOK_EVERY_S: Final = 0.2
MAX_LOOK_S: Final = 0.5
"""A look that comes later than this after the last one counts no more: the process was stopped meanwhile, or
something held its loop up, and what the others have sent since then has not been read yet."""


class RunningTime:
    """Mutable: how long a block has taken while its loop ran, and for how long the loop stood still.

    With a limit it is `asyncio.timeout` in this time: what takes longer ends in TimeoutError.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.passed_s = 0.0
        self.stood_still_s = 0.0
        self._limit_s = float("inf") if limit_s is None else limit_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._looked_at = self._loop.time()
        self._look_later()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next_look.cancel()
        self._count()
        await self._timeout.__aexit__(kind, error, trace)

    def _look_later(self) -> None:
        pause_s = min(LOOK_EVERY_S, self._limit_s - self.passed_s)
        self._next_look = self._loop.call_later(pause_s, self._look)

    def _look(self) -> None:
        self._count()
        if self.passed_s < self._limit_s:
            self._look_later()
        else:
            self._timeout.reschedule(self._loop.time())

    def _count(self) -> None:
        now = self._loop.time()
        since_s, self._looked_at = now - self._looked_at, now
        self.passed_s += min(since_s, MAX_LOOK_S)
        self.stood_still_s += max(0.0, since_s - MAX_LOOK_S)

"""How many threads a CPU's steps use: no more than others leave processors for."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
import torch

log = structlog.get_logger(__name__)

_INTERVAL_S = 0.5
"""Of what is looked at: the system counts in 10 ms."""
_RETRY_S = 10.0
"""How often all threads are tried although others were busy: they may be nicer than this process."""
_SHORTFALL = 0.3
"""What may lack of a processor for a thread to be worth having."""


class ComputeThreads:
    """Sets the number of torch's threads before a step, if others on the machine have become busy or idle.

    Every thread has its part of every product, and a step waits for the slowest: if one processor is at
    something else, the others wait with it for as long as the system's slice, which is milliseconds, several
    hundred times in a step. So threads that have no processor to themselves are left out.
    """

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy_s: Callable[[], float] = time.process_time,  # of this process, on all processors
        idle_s: Callable[[], float | None] | None = None,  # of this process's processors; None: not known
        apply: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._most = self._num = most
        self._clock, self._busy_s, self._apply = clock, busy_s, apply
        self._idle_s = idle_s or idle_time
        self._next_look = self._next_try = 0.0
        self._seen: tuple[float, float] | None = None  # when, and idle and own time until then

    @property
    def num(self) -> int:
        """Threads in use."""
        return self._num

    def adjust(self) -> None:
        """Look at the machine if it is time to; costs next to nothing otherwise."""
        now = self._clock()
        if self._most == 1 or now < self._next_look:
            return
        self._next_look = now + _INTERVAL_S
        idle_s = self._idle_s()
        if idle_s is None:
            return
        before, self._seen = self._seen, (now, idle_s + self._busy_s())
        if before is not None:
            self._use(self._wanted((self._seen[1] - before[1]) / (now - before[0]), now))

    def _wanted(self, num_processors: float, now: float) -> int:
        """Return how many threads so many processors are worth, on the average since the last look."""
        num = max(1, min(self._most, math.floor(num_processors + _SHORTFALL)))
        if num == self._most or self._num == self._most:
            self._next_try = now + _RETRY_S
        return num if now < self._next_try else self._most

    def _use(self, num: int) -> None:
        if num != self._num:
            log.info("engine.threads", num=num, most=self._most)
            self._num = num
            self._apply(num)


def idle_time() -> float | None:
    """Return the seconds for which the processors that this process may use were idle; None if not told."""
    with suppress(OSError, ValueError, IndexError):
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        # idle and iowait, proc_stat(5)
        ticks = [int(words[4]) + int(words[5]) for words in lines if words and words[0] in ours]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    return None

"""Watches the engine: ends it if it hangs, and lets cancels and deadlines take effect meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.engine.core.errors import EngineDied
from workers.engine.serving.process import EngineProcess
from workers.engine.serving.step_board import Phase, Progress

FLOOR_S: Final = 60.0
FACTOR: Final = 20.0
LATE_SHARE: Final = 1 / 6
"""After so much of its limit the engine is late: it gets no new jobs until it moves again."""

UNANSWERED_S: Final = 5.0
"""An engine that has not moved for so long will not soon say how what was stopped has ended."""

LOOK_EVERY_S: Final = 0.05
MAX_LOOK_S: Final = 0.5

logger = structlog.get_logger(__name__)


class ProgressLimit:
    """Mutable: how long the engine has not moved while the watching thread ran, and how long it may.

    A step may take `factor` times what is predicted of it, and `floor_s` in any case; the first one, in which
    kernels may be compiled, `start_s`. A look that comes over `max_look_s` after the last one counts no more:
    this process was stopped, most likely together with the engine.
    """

    def __init__(
        self,
        *,
        start_s: float,
        floor_s: float = FLOOR_S,
        factor: float = FACTOR,
        max_look_s: float = MAX_LOOK_S,
    ) -> None:
        self._start_s = start_s
        self._floor_s = floor_s
        self._factor = factor
        self._max_look_s = max_look_s
        self._looked_at: float | None = None
        self.progress = Progress()
        self.is_idle = False
        """At the last look it had nothing to do."""
        self.stuck_s = 0.0
        """For so long it has not moved although it had something to do."""

    def look(self, progress: Progress, num_sent: int, now: float) -> None:
        """Take in what the engine says, and how many commands it was sent, at a monotonic time."""
        passed_s = 0.0
        if self._looked_at is not None and not self.is_idle:
            passed_s = min(now - self._looked_at, self._max_look_s)
        self._looked_at = now
        self.is_idle = progress.phase is Phase.WAITING and progress.num_taken >= num_sent
        has_moved = progress.num_moves != self.progress.num_moves
        self.progress = progress
        self.stuck_s = 0.0 if self.is_idle or has_moved else self.stuck_s + passed_s

    @property
    def limit_s(self) -> float:
        """How long the engine may take for what it does now."""
        if not self.progress.num_steps:
            return self._start_s
        return max(self._floor_s, self._factor * self.progress.predicted_s)

    @property
    def is_over(self) -> bool:
        """Whether the engine hangs."""
        return self.stuck_s >= self.limit_s

    @property
    def is_late(self) -> bool:
        """Whether it may hang, so that it should be given nothing new."""
        return self.stuck_s >= self.limit_s * LATE_SHARE

    @property
    def is_unanswering(self) -> bool:
        """Whether it will not soon answer what it is told."""
        return self.stuck_s >= min(UNANSWERED_S, self.limit_s / 2)


class Jobs(Protocol):
    """The attempts in the engine's hands."""

    @property
    def are_held(self) -> bool:
        """Whether there are any."""
        ...

    def stop_overdue(self, now: float) -> None:
        """Stop what has missed its deadline or was revoked."""
        ...

    def end_unanswered(self) -> None:
        """End what was cancelled or has expired, without the engine's word on it."""
        ...


class EngineWatch:
    """A thread of its own: the one that listens to the engine may be in the middle of a torn message.

    It sleeps while the engine has nothing to do and no attempt is held, until it is roused.
    """

    def __init__(
        self,
        engine: EngineProcess,
        limit: ProgressLimit,
        jobs: Jobs,
        *,
        on_hung: Callable[[EngineDied], None],
        on_broken: OnBroken,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._limit = limit
        self._jobs = jobs
        self._on_hung = on_hung
        self._clock = clock
        self.may_sleep = False
        """Nothing is to be looked at until it is roused."""
        self._roused = threading.Event()
        self._thread = ServiceThread("engine-watch", self._step, on_broken=on_broken, wake=self.rouse)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._thread.close()

    def rouse(self) -> None:
        """Have it look: the engine was given something, or an attempt is held."""
        if not self._roused.is_set():
            self._roused.set()

    def _step(self) -> None:
        if self.may_sleep:
            self._roused.wait()
        if self._thread.stopping.wait(LOOK_EVERY_S):
            return
        self._roused.clear()  # before the look: what comes during it is looked at as well
        self.look(self._clock())

    def look(self, now: float) -> None:
        """Look once at the engine, at its jobs' deadlines and at what was revoked."""
        limit = self._limit
        limit.look(self._engine.progress(), self._engine.num_sent, now)
        self._jobs.stop_overdue(now)
        if limit.is_unanswering:
            self._jobs.end_unanswered()
        if limit.is_over:
            self._thread.stop()
            waited = f"{limit.stuck_s:.1f} s, of {limit.limit_s:.1f} s at most"
            reason = f"no progress for {waited}, in {limit.progress}"
            logger.critical("engine.hung", reason=reason, pid=self._engine.pid)
            self._on_hung(self._engine.give_up(reason))
        self.may_sleep = limit.is_idle and not self._jobs.are_held

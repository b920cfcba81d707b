"""Runs one loop in the background and decides what its exceptions mean: the only way to make a thread here.

What one item caused ends that item (`item`), an outage is ridden out, and anything else begins the loop anew
with its state kept: three times in a minute, then the process is told to drain. An observer, whose loss harms
no job, is begun anew forever and never ends its process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Final, TypeVar

import structlog

from lorayard.process.items import one_item
from lorayard.process.logs import worded
from lorayard.process.restarts import MAX_RESTARTS, WINDOW_S, RestartBudget

OUTAGE_PAUSE_S: Final = 0.5
RESTART_PAUSE_S: Final = 0.1
OBSERVER_PAUSE_S: Final = 5.0
"""Once an observer has used up its restarts: it stays loud without flooding the log."""

CLOSE_S: Final = 5.0

logger = structlog.get_logger(__name__)
T = TypeVar("T")
OnBroken = Callable[[str], None]
"""Has the process drain; takes the thread's name, must not block and may be called more than once."""


class ServiceThread:
    """Mutable: one loop on a daemon thread, whose `step` is called again and again until `stop`.

    A step waits for its work by itself, and returns when `stopping` is set: `wake` is called after that, so
    that a step waiting on something else can be woken. State belongs to the step's owner, and a step that
    raises leaves it such that the next one can go on: that is all that beginning anew takes.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        *,
        on_broken: OnBroken | None,
        is_outage: Callable[[BaseException], bool] = lambda _error: False,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        """Without `on_broken` it is an observer; `pause` takes seconds, and by default ends with `stop`."""
        self.name = name
        self.stopping = threading.Event()
        self._step = step
        self._on_broken = on_broken
        self._is_outage = is_outage
        self._wake = wake
        self._budget = RestartBudget(clock)
        self._pause = pause or self._wait
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._is_started = False

    @property
    def is_observer(self) -> bool:
        """Whether the process goes on without it."""
        return self._on_broken is None

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin; starting twice, or after `stop`, does nothing."""
        with self._lock:
            if not self._is_started and not self.stopping.is_set():
                self._is_started = True
                self._thread.start()

    def stop(self) -> None:
        """Have the loop end after its step; a step may call this itself."""
        self.stopping.set()
        self._wake()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Stop and wait for the end; False, and a line in the log, if it did not come in time."""
        self.stop()
        if self._is_started and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("service.still_running", thread=self.name, waited_s=timeout_s)
                return False
        return True

    def item(self, **ids: object) -> AbstractContextManager[None]:
        """Let one item fail alone, logged with its ids; outages are the loop's affair and pass through."""
        return one_item(self.name, self._is_outage, **ids)

    def each(
        self, items: Iterable[T], work: Callable[[T], object], ids: Callable[[T], dict[str, object]]
    ) -> None:
        """Do something with each of several items, one of which may fail alone; `ids` name it in the log."""
        for one in items:
            try:
                work(one)
            except Exception:  # entering `item` for each would take longer than most work does
                with self.item(**ids(one)):
                    raise

    def run_step(self) -> None:
        """Do one step: the one place to wrap where tests make a loop fail."""
        self._step()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.run_step()
            except BaseException as error:  # noqa: BLE001 - no thread ends unseen
                if self._waits_out(error):
                    _log("warning", "service.outage", thread=self.name, error=worded(error))
                    self._pause(OUTAGE_PAUSE_S)
                elif not self._begins_anew(error):
                    return

    def _waits_out(self, error: BaseException) -> bool:
        try:
            return self._is_outage(error)
        except Exception:  # noqa: BLE001 - an error that cannot even be judged is no outage
            return False

    def _begins_anew(self, error: BaseException) -> bool:
        if self._budget.take():
            _log("error", "service.restarted", thread=self.name, error=worded(error), exc_info=error)
            self._pause(RESTART_PAUSE_S)
            return True
        _log(
            "critical",
            "service.broken",
            thread=self.name,
            error=worded(error),
            restarts=MAX_RESTARTS,
            within_s=WINDOW_S,
            drains=not self.is_observer,
            exc_info=error,
        )
        if self._on_broken is None:
            self._pause(OBSERVER_PAUSE_S)
            return True
        self._on_broken(self.name)
        return False

    def _wait(self, seconds: float) -> None:
        self.stopping.wait(seconds)


def _log(level: str, event: str, **fields: object) -> None:
    """Log it if that can be done: what a thread does next does not depend on it."""
    with suppress(Exception):
        getattr(logger, level)(event, **fields)

"""Starts the stack's processes and keeps them written down, for the watchdog and for the next holder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from lorayard.local.child import Child, ChildSpec
from lorayard.local.state import StateDirectory, unwritable
from lorayard.local.watchdog import Watchdog

_log = structlog.get_logger(__name__)


class ChildRegistry:
    """Every living process of one stack."""

    def __init__(self, state: StateDirectory, pause: Callable[[float], None] = time.sleep) -> None:
        self._state = state
        self._pause = pause
        self._watchdog = Watchdog()
        self._children: list[Child] = []
        self._lock = threading.Lock()

    @property
    def watchdog_pid(self) -> int:
        """Return the id of the process that ends the children if this one dies."""
        return self._watchdog.pid

    def spawn(self, spec: ChildSpec) -> Child:
        """Start a process that ends with this one, or is found by the next holder.

        It is written down before its program runs. Raises LocalStackError, with nothing started, if that or
        its log cannot be written.
        """
        with self._lock:
            try:
                return Child(spec, self._pause, before_run=self._write_down)
            except OSError as error:
                raise unwritable(self._state.path, error, f"{spec.name} was not started") from error

    def prune(self) -> None:
        """Strike the processes that have ended off the record, before their pids are used again.

        A record that cannot be written stays as it is, until the next one can: it names processes by their
        start times too, so that those which ended are mistaken for no other.
        """
        with self._lock:
            self._forget_ended()
            try:
                self._state.record(self._children)
            except OSError as error:
                _log.warning("processes.not_recorded", error=str(error))

    def close(self) -> None:
        """Kill what still runs and end the watchdog."""
        for child in self._children:
            child.kill()
        self.prune()
        self._watchdog.close()

    def _write_down(self, child: Child) -> None:
        self._forget_ended()
        self._watchdog.follow(child.identity)
        try:
            self._state.record([*self._children, child])
        except BaseException:
            self._watchdog.forget(child.identity)
            raise
        self._children.append(child)

    def _forget_ended(self) -> None:
        for child in [child for child in self._children if not child.alive]:
            self._watchdog.forget(child.identity)
            self._children.remove(child)

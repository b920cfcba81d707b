"""Starts the stack's processes and keeps them written down, for the watchdog and for the next holder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lorayard.local.child import Child, ChildSpec
from lorayard.local.state import StateDirectory
from lorayard.local.watchdog import Watchdog


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
        """Start a process; from here on it ends with this one, or is found by the next holder."""
        with self._lock:
            child = Child(spec, self._pause)
            self._watchdog.follow(child.identity)
            self._children.append(child)
            self._prune()
            return child

    def prune(self) -> None:
        """Strike the processes that have ended off the record, before their pids are used again."""
        with self._lock:
            self._prune()

    def close(self) -> None:
        """Kill what still runs and end the watchdog."""
        for child in self._children:
            child.kill()
        self.prune()
        self._watchdog.close()

    def _prune(self) -> None:
        for child in [child for child in self._children if not child.alive]:
            self._watchdog.forget(child.identity)
            self._children.remove(child)
        self._state.record(self._children)

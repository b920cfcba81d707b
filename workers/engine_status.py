"""Keeps the engine's last word on its capacity and its adapters, for events and heartbeats."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from lorayard.contract.messages import Residency


class Capacity(NamedTuple):
    """What an engine could still take."""

    free_seqs: int
    free_kv_blocks: int


class ResidencyNews(NamedTuple):
    """Residency as of an epoch: either what changed, or all of it."""

    epoch: int
    residency: tuple[Residency, ...]


class EngineStatus:
    """Capacity and residency of one engine; written by its pump, read by the publisher."""

    def __init__(self, capacity: Capacity) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._epoch = 0
        self._resident: dict[str, Residency] = {}
        self._changed: dict[str, Residency] = {}

    @property
    def capacity(self) -> Capacity:
        """The capacity after the last step."""
        with self._lock:
            return self._capacity

    @property
    def has_news(self) -> bool:
        """Whether residency has changed since it was last told."""
        with self._lock:
            return bool(self._changed)

    def update(self, capacity: Capacity, epoch: int, changes: Iterable[Residency]) -> None:
        """Note what a step left behind."""
        with self._lock:
            self._capacity = capacity
            self._epoch = max(self._epoch, epoch)
            for change in changes:
                self._changed[change.revision] = change
                if change.tier == "none":
                    self._resident.pop(change.revision, None)
                else:
                    self._resident[change.revision] = change

    def take_changes(self) -> ResidencyNews:
        """Hand out what changed since the last call, once."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return ResidencyNews(self._epoch, tuple(changed.values()))

    def whole(self) -> ResidencyNews:
        """Hand out the whole picture, which makes pending changes old news."""
        with self._lock:
            self._changed = {}
            return ResidencyNews(self._epoch, tuple(self._resident.values()))

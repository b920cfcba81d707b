"""A simulated worker's adapters: slots, host cache, and loads, one at a time on each channel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from benchmarks.policies.goals import Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.workload import Adapter

Schedule = Callable[[float, Callable[[float], None]], None]
"""Calls a function with the time, once it has come."""


class Residency:
    """Mutable: one worker's two tiers; what jobs here want leaves neither, else the least recently used goes.

    A slot never holds what the host does not. Hints come before recency, as in the engine: what is to be
    dropped goes first, and what is wanted later than an arrival stays only if nothing else can go.
    """

    def __init__(
        self, pool: Pool, hardware: Hardware, at: Schedule, on_ready: Callable[[float], None]
    ) -> None:
        self._pool, self._hardware, self._at, self._on_ready = pool, hardware, at, on_ready
        self.slots: dict[str, Adapter] = {}
        """Resident adapters, the least recently used first."""
        self.host: dict[str, Adapter] = {}
        self.uses: dict[str, int] = {}
        """Jobs here, waiting or running, by adapter."""
        self.warm_host: tuple[Adapter, ...] = ()
        self.warm_slots: tuple[Adapter, ...] = ()
        self.slot_bytes = 0
        self.store_bytes = 0
        self._loads: deque[Adapter] = deque()
        self._loading: Adapter | None = None
        self._copies: deque[Adapter] = deque()
        self._copying: Adapter | None = None
        self._wanted: dict[str, int] = {}
        self._hinted: deque[Adapter] = deque()
        self._expendable: Collection[str] = ()

    def warm(self, host: Iterable[Adapter], slots: Iterable[Adapter]) -> None:
        """Start with adapters in place."""
        self.host.update((adapter.name, adapter) for adapter in host)
        self.slots.update((adapter.name, adapter) for adapter in slots)
        self.warm_host, self.warm_slots = tuple(self.host.values()), tuple(self.slots.values())

    def use(self, adapter: Adapter, now: float) -> None:
        """Note that a job wants an adapter, and begin to bring it."""
        name = adapter.name
        self.uses[name] = self.uses.get(name, 0) + 1
        if name in self.host:
            self._touch(name)
            if name not in self.slots and self.uses[name] == 1:
                self._copies.append(adapter)
                self._copy_next(now)
        elif self.uses[name] == 1 and self._loading is not adapter:
            self._loads.append(adapter)
            self._load_next(now)

    def release(self, adapter: Adapter) -> None:
        """Note that a job has ended."""
        name = adapter.name
        self.uses[name] -= 1
        if not self.uses[name]:
            del self.uses[name]
        if name in self.host:
            self._touch(name)

    def follow(self, prefetch: Sequence[Adapter], drop: Collection[str], now: float) -> None:
        """Take a hint: what to load while nothing else is loaded, in order, and what may go first."""
        self._wanted = {adapter.name: place for place, adapter in enumerate(prefetch)}
        self._hinted = deque(prefetch)
        self._expendable = set(drop)
        self._load_next(now)

    def _touch(self, name: str) -> None:
        self.host[name] = self.host.pop(name)
        if name in self.slots:
            self.slots[name] = self.slots.pop(name)

    def _load_next(self, now: float) -> None:
        """Begin the next load from the store that somebody still waits for, or one that is hinted at."""
        if self._loading is not None:
            return
        while self._loads:
            adapter = self._loads.popleft()
            if adapter.name in self.uses and adapter.name not in self.host:
                self._begin_load(adapter, now)
                return
        while self._hinted:
            adapter = self._hinted.popleft()
            if adapter.name not in self.host and self._may_prefetch(adapter):
                self._begin_load(adapter, now)
                return

    def _may_prefetch(self, adapter: Adapter) -> bool:
        if len(self.host) < self._pool.host_adapters:
            return True
        victim = self._victim(self.host)
        return victim is not None and self._wanted.get(victim, len(self._wanted)) > self._wanted[adapter.name]

    def _begin_load(self, adapter: Adapter, now: float) -> None:
        self._loading = adapter
        self.store_bytes += adapter.size
        hardware = self._hardware
        self._at(now + hardware.load_s + adapter.size / hardware.store_bytes_per_s, self._end_load)

    def _end_load(self, now: float) -> None:
        adapter, self._loading = self._loading, None
        assert adapter is not None, "one load at a time"
        if self._make_place(adapter):
            self.host[adapter.name] = adapter
            if adapter.name in self.uses:
                self._copies.append(adapter)
                self._copy_next(now)
        self._load_next(now)

    def _make_place(self, adapter: Adapter) -> bool:
        """Have one leave a full host; False if jobs want all of them, and the arrival was only hinted at."""
        if len(self.host) < self._pool.host_adapters:
            return True
        victim = self._victim(self.host)
        if victim is None:
            assert adapter.name not in self.uses, "the host is full of more than the jobs here can want"
            return False
        del self.host[victim]
        self.slots.pop(victim, None)
        return True

    def _copy_next(self, now: float) -> None:
        while self._copying is None and self._copies:
            adapter = self._copies.popleft()
            if adapter.name not in self.uses or adapter.name in self.slots:
                continue
            if len(self.slots) >= self._pool.slots:
                victim = self._victim(self.slots)
                assert victim is not None, "jobs here want more adapters than there are slots"
                del self.slots[victim]
            self._copying = adapter
            self.slot_bytes += adapter.size
            self._at(now + adapter.size / self._hardware.host_bytes_per_s, self._end_copy)

    def _end_copy(self, now: float) -> None:
        adapter, self._copying = self._copying, None
        assert adapter is not None, "one copy at a time"
        if adapter.name in self.host:  # else it left while it was copied
            self.slots[adapter.name] = adapter
        assert len(self.slots) <= self._pool.slots, "more adapters than slots"
        self._copy_next(now)
        self._on_ready(now)

    def _victim(self, tier: dict[str, Adapter]) -> str | None:
        """Choose who leaves: what a hint gives up, the least recently used, what is wanted latest."""
        idle = [name for name in tier if name not in self.uses]
        for name in idle:
            if name in self._expendable:
                return name
        unwanted = next((name for name in idle if name not in self._wanted), None)
        return unwanted or max(idle, key=lambda name: self._wanted[name], default=None)

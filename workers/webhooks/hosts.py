"""Keeps one dead or slow host from holding up the others."""

from __future__ import annotations

from asyncio import Semaphore
from dataclasses import dataclass, field

FAILURES_TO_OPEN = 5
FIRST_PAUSE_S = 30.0
MAX_PAUSE_S = 600.0


@dataclass(slots=True)
class _Host:
    places: Semaphore
    in_flight: int = 0
    failures: int = 0
    closed_until: float = field(default=float("-inf"))


class Hosts:
    """Mutable: places in flight for each host, and a circuit breaker that pauses the failing ones."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: dict[str, _Host] = {}

    def places(self, host: str) -> Semaphore:
        """The right to call a host."""
        return self._host(host).places

    def begin(self, host: str) -> None:
        """Note a delivery to a host, waiting for its place or under way."""
        self._host(host).in_flight += 1

    def end(self, host: str) -> None:
        """Note that a delivery is through; a host in good standing is forgotten."""
        entry = self._host(host)
        entry.in_flight -= 1
        if not entry.in_flight and not entry.failures:
            del self._hosts[host]

    def record(self, host: str, *, ok: bool, now: float) -> None:
        """Count an answer: some failures in a row pause the host, each further one for twice as long."""
        entry = self._host(host)
        entry.failures = 0 if ok else entry.failures + 1
        if entry.failures >= FAILURES_TO_OPEN:
            pause_s = FIRST_PAUSE_S * 2.0 ** (entry.failures - FAILURES_TO_OPEN)
            entry.closed_until = now + min(pause_s, MAX_PAUSE_S)

    def pause_left_s(self, host: str, now: float) -> float:
        """How long a host is still left alone; 0 if it may be called."""
        return max(0.0, self._host(host).closed_until - now)

    def unavailable(self, now: float) -> list[str]:
        """Name the hosts for which nothing should be claimed now."""
        return [
            name
            for name, entry in self._hosts.items()
            if entry.in_flight >= self._per_host or entry.closed_until > now
        ]

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            self._hosts[name] = _Host(Semaphore(self._per_host))
        return self._hosts[name]

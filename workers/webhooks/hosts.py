"""Leaves a receiver alone that fails again and again: circuit breakers, one for each tenant and host."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

FAILURES_TO_OPEN: Final = 5
FIRST_PAUSE_S: Final = 30.0
MAX_PAUSE_S: Final = 600.0

FORGET_S: Final = 3600.0
"""An answer counts for so long after the last one: a name that is used once must not be kept forever."""

MAX_REMEMBERED: Final = 10_000

Receiver = tuple[str, str]
"""A tenant and a host: what one tenant does to a host's standing is no other tenant's affair."""


@dataclass(slots=True)
class _Record:
    in_flight: int = 0
    failures: int = 0
    failed_at: float = float("-inf")
    paused_at: float = float("-inf")
    paused_until: float = float("-inf")


class Hosts:
    """Mutable: how receivers have fared of late, and which of them are paused.

    After its pause a receiver is tried by one delivery at a time, until one is accepted.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._hosts: OrderedDict[Receiver, _Record] = OrderedDict()
        """Those with deliveries in flight or with failures, the last to fail at the end."""
        self._accepted_at: OrderedDict[Receiver, float] = OrderedDict()
        """Those whose latest answer was a good one, the last to give it at the end."""

    def __len__(self) -> int:
        return len(self._hosts)

    def begin(self, receiver: Receiver) -> None:
        """Note that a delivery is under way."""
        self._hosts.setdefault(receiver, _Record()).in_flight += 1

    def end(self, receiver: Receiver) -> None:
        """Note that a delivery is through; a receiver in good standing is forgotten."""
        record = self._hosts[receiver]
        record.in_flight -= 1
        if not record.in_flight and not record.failures:
            del self._hosts[receiver]

    def record(self, receiver: Receiver, *, ok: bool, began_at: float, now: float) -> None:
        """Count an answer: some failures in a row pause a receiver, each further one for twice as long.

        Whatever was on its way when a pause began fails for the reason of that pause, and is no further one.
        """
        record = self._hosts.setdefault(receiver, _Record())
        if not ok and began_at <= record.paused_at:
            return
        record.failures = 0 if ok else record.failures + 1
        self._accepted_at.pop(receiver, None)
        if ok:
            record.paused_at = record.paused_until = float("-inf")
            self._accepted_at[receiver] = now
            if len(self._accepted_at) > self._max_remembered:
                self._accepted_at.popitem(last=False)
            return
        record.failed_at = now
        if record.failures >= FAILURES_TO_OPEN:
            doublings = min(record.failures - FAILURES_TO_OPEN, 10)
            record.paused_at = now
            record.paused_until = now + min(FIRST_PAUSE_S * 2.0**doublings, MAX_PAUSE_S)
        self._hosts.move_to_end(receiver)
        self._forget(now)

    def pause_left_s(self, receiver: Receiver, now: float) -> float:
        """How long a receiver is still left alone; 0 if it may be called."""
        record = self._hosts.get(receiver)
        return max(0.0, record.paused_until - now) if record else 0.0

    def is_proven(self, receiver: Receiver, now: float) -> bool:
        """Whether a receiver has accepted what it was sent last, within the past hour."""
        return self._accepted_at.get(receiver, float("-inf")) > now - FORGET_S

    def is_idle(self, receiver: Receiver) -> bool:
        """Whether nothing is in flight to a receiver."""
        record = self._hosts.get(receiver)
        return record is None or not record.in_flight

    def may_call(self, receiver: Receiver, now: float) -> bool:
        """Whether another delivery may begin: a receiver that was paused gets one at a time."""
        record = self._hosts.get(receiver)
        if record is None or record.failures < FAILURES_TO_OPEN:
            return True
        return record.paused_until <= now and not record.in_flight

    def _forget(self, now: float) -> None:
        """Drop what failed long ago, and the oldest of too many; those with deliveries in flight stay."""
        surplus = len(self._hosts) - self._max_remembered
        stale: list[Receiver] = []
        for receiver, record in self._hosts.items():
            if record.failed_at > now - FORGET_S and len(stale) >= surplus and record.failures:
                break
            if not record.in_flight:
                stale.append(receiver)
        for receiver in stale:
            del self._hosts[receiver]

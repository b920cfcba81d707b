"""Renews this incarnation's lease, tells what it holds, and acts on the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from db.judge import explain, fault_of
from lorayard.contract.messages import HeldJob
from workers.attempts import AttemptTable
from workers.engine_host import EngineHost
from workers.ledger_health import LedgerHealth
from workers.registration import Registration

RENEWALS_PER_LEASE = 5
RETRIES_PER_LEASE = 20

logger = structlog.get_logger(__name__)


class LeaseKeeper:
    """A thread of its own with a connection of its own: no commit or load may delay a renewal.

    Each beat is three transactions. Whatever the first raises is a failed beat, soon tried again; the others
    may fail as long as they like.
    """

    def __init__(
        self,
        registration: Registration,
        attempts: AttemptTable,
        host: EngineHost,
        *,
        health: LedgerHealth,
        on_registered: Callable[[], None],
        heartbeat: Callable[[Sequence[HeldJob]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._registration = registration
        self._attempts = attempts
        self._host = host
        self._health = health
        self._on_registered = on_registered
        self._heartbeat = heartbeat
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._failing: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Register, for as long as that takes, then begin to renew; starting twice does nothing."""
        if not self._thread.is_alive() and not self._closed.is_set():
            self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        retry_s = self._registration.lease_s / RETRIES_PER_LEASE
        while not self._attempt("registration", self._register):
            if self._closed.wait(retry_s):
                return
        next_at = time.monotonic()
        while not self._closed.wait(max(0.0, next_at - time.monotonic())):
            began_at = time.monotonic()
            if self._beat():
                next_at = began_at + self._registration.lease_s / RENEWALS_PER_LEASE
            else:
                next_at = time.monotonic() + retry_s

    def _register(self) -> None:
        self._registration.enter()
        self._on_registered()

    def _beat(self) -> bool:
        """Renew before all else; returns whether that went through."""
        renewed = self._attempt("renewal", self._renew)
        if self._closed.is_set():
            return renewed
        self._attempt("heartbeat", lambda: self._heartbeat(self._attempts.report()))
        if renewed:
            self._attempt("aborts", self._abort)
            self._attempt("running jobs", lambda: self._registration.report(self._attempts.report()))
        return renewed

    def _attempt(self, part: str, act: Callable[[], None]) -> bool:
        """Do one part of a beat; no exception gets further, and a row of them is logged once."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a thread that died of one would take the lease with it
            self._health.failed(part, error)
            if part not in self._failing:
                logger.warning(
                    "lease.beat_failed", part=part, fault=fault_of(error).value, error=explain(error)
                )
            self._failing.add(part)
            return False
        self._health.served(part)
        self._failing.discard(part)
        return True

    def _renew(self) -> None:
        if self._registration.renew():
            self._health.renewed()
            return
        logger.error("lease.lost", held=len(self._attempts))
        self._closed.set()
        self._on_lost()

    def _abort(self) -> None:
        aborts = self._registration.aborts(self._attempts.report())
        self._host.cancel(frozenset(aborts.cancelled))
        self._host.fence(aborts.not_mine)

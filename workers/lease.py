"""Renews this incarnation's lease, tells what it holds, and acts on the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from db.judge import explain, fault_of
from lorayard.contract.messages import HeldJob
from lorayard.process.service_thread import OnBroken, ServiceThread
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
    may fail as long as they like. A loop that begins anew renews; it registers once in its life.
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
        on_refused: Callable[[str], None],
        on_broken: OnBroken,
    ) -> None:
        """`on_refused` is told why the pool does not take this worker."""
        self._registration = registration
        self._attempts = attempts
        self._host = host
        self._health = health
        self._on_registered = on_registered
        self._heartbeat = heartbeat
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._is_registered = False
        self._has_told = False
        """Whether `on_registered` went through."""
        self._next_at = time.monotonic()
        self._failing: set[str] = set()
        self._thread = ServiceThread("lease", self._step, on_broken=on_broken)

    def start(self) -> None:
        """Register, for as long as that takes, then begin to renew; starting twice does nothing."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._thread.close()

    def _step(self) -> None:
        """Wait for the next beat and do it; the first one that goes through registers."""
        if self._thread.stopping.wait(max(0.0, self._next_at - time.monotonic())):
            return
        began_at = time.monotonic()
        if not self._is_registered:
            self._is_registered = self._attempt("registration", self._register)
            if self._thread.stopping.is_set():
                return
        if self._is_registered and self._beat():
            self._next_at = began_at + self._registration.lease_s / RENEWALS_PER_LEASE
        else:
            self._next_at = time.monotonic() + self._registration.lease_s / RETRIES_PER_LEASE

    def _beat(self) -> bool:
        """Renew before all else but the word that the worker is there; returns whether that went through."""
        if not self._has_told:
            self._has_told = self._attempt("readiness", self._on_registered)
        renewed = self._attempt("renewal", self._renew)
        if self._thread.stopping.is_set():
            return renewed
        self._attempt("heartbeat", lambda: self._heartbeat(self._attempts.report()))
        if renewed:
            self._attempt("aborts", self._abort)
            self._attempt("running jobs", self._report)
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

    def _register(self) -> None:
        if (refusal := self._registration.enter()) is not None:
            logger.critical("worker.refused", reason=refusal)
            self._thread.stop()
            self._on_refused(refusal)

    def _renew(self) -> None:
        if self._registration.renew():
            self._health.renewed()
            return
        logger.error("lease.lost", held=len(self._attempts))
        self._thread.stop()
        self._on_lost()

    def _report(self) -> None:
        self._registration.report(self._attempts.report(), self._attempts.num_succeeded)

    def _abort(self) -> None:
        aborts = self._registration.aborts(self._attempts.report())
        self._host.cancel(frozenset(aborts.cancelled))
        self._host.fence(aborts.not_mine)

"""Renews this incarnation's lease, tells what it holds, and acts on the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from db.errors import DatabaseUnavailable
from db.records import Renewal
from lorayard.contract.messages import HeldJob
from workers.engine_host import EngineHost
from workers.holding import HoldingTable
from workers.registration import Registration

RENEW_EVERY_S = 2.0
RETRY_S = 0.5

logger = structlog.get_logger(__name__)


class LeaseKeeper:
    """A thread of its own with a connection of its own: no commit or load may delay a renewal."""

    def __init__(
        self,
        registration: Registration,
        holding: HoldingTable,
        host: EngineHost,
        *,
        on_registered: Callable[[], None],
        heartbeat: Callable[[Sequence[HeldJob]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._registration = registration
        self._holding = holding
        self._host = host
        self._on_registered = on_registered
        self._heartbeat = heartbeat
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._reached = True
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
        self._register()
        next_at = time.monotonic()
        while not self._closed.wait(max(0.0, next_at - time.monotonic())):
            next_at = time.monotonic() + (RENEW_EVERY_S if self._beat() else RETRY_S)

    def _register(self) -> None:
        while not self._closed.is_set():
            try:
                self._registration.enter()
            except DatabaseUnavailable as error:
                logger.warning("worker.not_registered", error=str(error))
                self._closed.wait(RETRY_S)
            else:
                self._on_registered()
                return

    def _beat(self) -> bool:
        held = self._holding.report()
        self._heartbeat(held)
        renewal = self._renew(held)
        if renewal is None:
            return False
        if not renewal.alive:
            logger.error("lease.lost", held=len(held))
            self._closed.set()
            self._on_lost()
            return True
        self._host.cancel(frozenset(renewal.cancelled))
        self._host.fence(renewal.not_mine)
        return True

    def _renew(self, held: Sequence[HeldJob]) -> Renewal | None:
        try:
            renewal = self._registration.renew(held)
        except DatabaseUnavailable as error:
            if self._reached:
                logger.warning("lease.database_unavailable", error=str(error))
            self._reached = False
            return None
        self._reached = True
        return renewal

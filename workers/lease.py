"""Renews this incarnation's lease, tells what it holds, and acts on the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from db.database import Database
from db.errors import DatabaseUnavailable
from db.records import Renewal
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import HeldJob
from workers.engine_host import EngineHost
from workers.holding import HoldingTable

LEASE_S = 10.0
RENEW_EVERY_S = 2.0
RETRY_S = 0.5

logger = structlog.get_logger(__name__)


class LeaseKeeper:
    """A thread of its own with a connection of its own: no commit or load may delay a renewal."""

    def __init__(
        self,
        database: Database,
        incarnation: str,
        holding: HoldingTable,
        host: EngineHost,
        *,
        heartbeat: Callable[[Sequence[HeldJob]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._holding = holding
        self._host = host
        self._heartbeat = heartbeat
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._reached = True
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._closed.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        next_at = time.monotonic()
        while not self._closed.wait(max(0.0, next_at - time.monotonic())):
            next_at = time.monotonic() + (RENEW_EVERY_S if self._beat() else RETRY_S)

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
            renewal = self._database.run(
                lambda connection: WorkerRepository(connection).renew(self._incarnation, held, lease_s=LEASE_S)
            )
        except DatabaseUnavailable as error:
            if self._reached:
                logger.warning("lease.database_unavailable", error=str(error))
            self._reached = False
            return None
        self._reached = True
        return renewal

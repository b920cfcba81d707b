"""What people have set in the ledger for the leader to heed: pauses, quotas, workers to be drained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection

from db.records import PauseRow, TenantQuota
from db.repositories.leases import LeaseRepository
from db.repositories.pauses import PauseRepository
from db.repositories.tenants import TenantRepository
from scheduler.periodic import PeriodicTask

REFRESH_S: Final = 0.5
"""A pause is obeyed within a second, of which this is the longest part."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pauses:
    """What is paused in one pool, or everywhere."""

    pool: bool = False
    tenants: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()

    def holds(self, tenant: str, adapter: str | None) -> bool:
        """Whether a job waits although its pool goes on."""
        return tenant in self.tenants or adapter in self.adapters

    def sets_apart_as(self, other: Pauses) -> bool:
        """Whether the same tenants and adapters are paused."""
        return self.tenants == other.tenants and self.adapters == other.adapters


class Instructions:
    """Mutable: what the ledger said last; read anew twice a second, in a transaction of the reaper's."""

    def __init__(self, pool: str, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock
        self._due = PeriodicTask(REFRESH_S)
        self.pauses = Pauses()
        self.quotas: tuple[TenantQuota, ...] = ()
        self.draining: tuple[str, ...] = ()
        """Incarnations that get no jobs, and may not know it yet."""

    def refresh(self, connection: Connection, *, is_urgent: bool = False) -> None:
        """Read what there is if it is time; a new leader is in haste."""
        if not self._due.is_due(self._clock()) and not is_urgent:
            return
        self._note(_pauses(PauseRepository(connection).of_pool(self._pool)))
        self.quotas = tuple(TenantRepository(connection).quotas())
        self.draining = tuple(LeaseRepository(connection).draining_workers(self._pool))

    def _note(self, pauses: Pauses) -> None:
        if pauses != self.pauses:
            logger.info(
                "queue.paused",
                pool=pauses.pool,
                tenants=sorted(pauses.tenants),
                adapters=sorted(pauses.adapters),
            )
        self.pauses = pauses


def _pauses(rows: list[PauseRow]) -> Pauses:
    return Pauses(
        pool=any(row.kind == "pool" for row in rows),
        tenants=frozenset(row.name for row in rows if row.kind == "tenant"),
        adapters=frozenset(row.name for row in rows if row.kind == "adapter"),
    )

"""Sets adapters aside that cannot be loaded: bad files at once, unreadable ones after two workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from db.records import FinishedJob
from db.repositories.adapters import AdapterRepository
from lorayard.contract.messages import AdapterFailure
from scheduler.catalogue import Catalogue
from scheduler.endings import Endings
from scheduler.leader_context import LeaderContext
from scheduler.worker_state import WorkerState

WORKERS_THAT_FAILED: Final = 2
FAILURE_MEMORY_S: Final = 600.0

logger = structlog.get_logger(__name__)


class Quarantine:
    """Mutable: which workers could not read which revision, and which revisions nobody may be given."""

    def __init__(self, context: LeaderContext, catalogue: Catalogue, endings: Endings) -> None:
        self._context = context
        self._catalogue = catalogue
        self._endings = endings
        self._failed_on: dict[str, dict[str, float]] = {}
        self._set_aside: set[str] = set()

    @property
    def revisions(self) -> Collection[str]:
        """What is set aside, as far as this leader knows."""
        return self._set_aside | self._catalogue.quarantined

    def judge(self, worker: WorkerState, failures: Sequence[AdapterFailure], now: float) -> None:
        """Act on loads that failed on a worker."""
        for failure in failures:
            if self._is_final(worker, failure, now):
                self._set_aside_revision(failure)
            else:
                worker.cool(failure.revision, now)
                logger.warning(
                    "adapter.cooling", revision=failure.revision, hostname=worker.hostname, code=failure.code
                )

    def follow_catalogue(self) -> None:
        """After a change of the catalogue: end queued jobs of what is quarantined, trust what is mended."""
        offered = {entry.revision for entry in self._catalogue.offered if entry.state == "active"}
        self._set_aside -= offered
        self.end_jobs()

    def end_jobs(self) -> None:
        """End the queued jobs of quarantined revisions."""
        self._endings.follow(self._context.transact(self._reject))

    def _is_final(self, worker: WorkerState, failure: AdapterFailure, now: float) -> bool:
        if not failure.retryable:
            return True
        failed_on = self._failed_on.setdefault(failure.revision, {})
        failed_on[worker.incarnation] = now
        recent = [at for at in failed_on.values() if now - at <= FAILURE_MEMORY_S]
        return len(recent) >= WORKERS_THAT_FAILED

    def _set_aside_revision(self, failure: AdapterFailure) -> None:
        reason = f"{failure.code}: {failure.message}"

        def quarantine(connection: Connection) -> list[FinishedJob]:
            AdapterRepository(connection).quarantine(self._context.pool, failure.revision, reason)
            return self._reject(connection)

        finished = self._context.transact(quarantine)
        self._set_aside.add(failure.revision)
        self._failed_on.pop(failure.revision, None)
        logger.error("adapter.quarantined", revision=failure.revision, reason=reason, jobs=len(finished))
        self._endings.follow(finished)

    def _reject(self, connection: Connection) -> list[FinishedJob]:
        return AdapterRepository(connection).reject_quarantined(self._context.pool)

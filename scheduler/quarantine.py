"""Sets revisions aside that cannot be loaded, and takes them back; what one store cannot give cools there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from db.records import FinishedJob, StoreFailureRow
from db.repositories.adapters import AdapterRepository
from db.repositories.store_failures import StoreFailureRepository
from lorayard.contract.messages import AdapterFailure, Command
from scheduler.catalogue import Catalogue
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.periodic import PeriodicTask
from scheduler.store_failures import StoreFailure, StoreFailures
from scheduler.worker_state import WorkerState

RETRY_PAUSES: Final = 2
"""In first pauses: what is set aside is tried again each minute."""

logger = structlog.get_logger(__name__)


class Quarantine:
    """Mutable: which revisions nobody may be given.

    Raises redis-py's errors, DatabaseUnavailable and Deposed.
    """

    def __init__(
        self,
        context: LeaderContext,
        catalogue: Catalogue,
        fleet: Fleet,
        failures: StoreFailures,
        endings: Endings,
        clock: Callable[[], float],
    ) -> None:
        self._context = context
        self._catalogue = catalogue
        self._fleet = fleet
        self._failures = failures
        self._endings = endings
        self._clock = clock
        self._set_aside: set[str] = set()
        self._followed = -1
        """The version of the catalogue that was followed last."""
        self._retries = PeriodicTask(RETRY_PAUSES * failures.first_pause_s)
        self._num_retries = 0

    @property
    def revisions(self) -> Collection[str]:
        """What is set aside, as far as this leader knows."""
        return self._set_aside | self._catalogue.quarantined

    def judge(self, worker: WorkerState, failures: Sequence[AdapterFailure], now: float) -> None:
        """Act on loads that failed on a worker: its store is left alone, or the revision is set aside."""
        for told in failures:
            self._context.items.attempt(
                "adapter_failure", told.revision, partial(self._judge, worker, told, now)
            )

    def _judge(self, worker: WorkerState, told: AdapterFailure, now: float) -> None:
        # A worker that has it in memory shows that it is good, whatever another makes of its files.
        is_served = any(
            told.revision in other.loaded for other in self._fleet.able_to_load(rank=0) if other is not worker
        )
        if not told.retryable and not is_served:
            self._set_aside_revision(told, None)
            return
        failure = self._failures.failure(told.revision, worker.store, told.code, told.message, now)
        if failure is None:
            return
        able = self._fleet.able_to_load(self._catalogue.rank(told.revision))
        if not is_served and self._failures.is_to_blame(failure, {other.store for other in able}):
            self._set_aside_revision(told, failure)
        else:
            self._cool(failure)

    def note_loads(self, worker: WorkerState, loaded: Collection[str], now: float) -> None:
        """Take note of what a worker loaded: its store gives, and what was set aside is trusted again."""
        if loaded:
            before = set(self._failures)
            for revision in sorted(loaded):
                self._failures.loaded(revision, worker.store, now)
            self._write_changes(before, now)
        if worker.is_ready and not worker.is_draining:
            # Also what it had before: the word of its load may have been lost, or heard by another leader.
            for revision in sorted(worker.loaded.intersection(self.revisions)):
                self._context.items.attempt("adapter_lift", revision, partial(self._lift, revision, worker))

    def follow_catalogue(self) -> None:
        """After a change of the catalogue: end queued jobs of what is quarantined, trust what was added.

        Others read the catalogue as well, so a change is one since this was done last.
        """
        version = self._catalogue.version
        if version == self._followed:
            return
        offered = {entry.revision for entry in self._catalogue.offered if entry.state == "active"}
        self._set_aside -= offered
        self.end_jobs()
        now = self._clock()
        rows = self._context.transact(lambda c: StoreFailureRepository(c).listed(self._context.pool))
        self._failures.restore(_failure(row, now) for row in rows)
        self._followed = version

    def end_jobs(self) -> None:
        """End the queued jobs of quarantined revisions."""
        self._endings.follow(self._context.transact(self._reject))

    def try_again(self) -> None:
        """Each minute, have one worker load each revision that is set aside; forget old failures."""
        now = self._clock()
        if not self._retries.is_due(now):
            return
        before = set(self._failures)
        self._failures.prune(now)
        self._write_changes(before, now)
        self._num_retries += 1
        asked: dict[str, list[str]] = {}
        for number, revision in enumerate(sorted(self._catalogue.quarantined)):
            able = self._fleet.able_to_load(self._catalogue.rank(revision))
            if able:
                worker = able[(self._num_retries + number) % len(able)]
                asked.setdefault(worker.incarnation, []).append(revision)
        for incarnation, revisions in asked.items():
            # There may be room for one load only: each comes first in its turn.
            first = self._num_retries % len(revisions)
            load = partial(self._have_loaded, incarnation, (*revisions[first:], *revisions[:first]))
            self._context.items.attempt("worker_retries", incarnation, load)

    def _have_loaded(self, incarnation: str, revisions: tuple[str, ...]) -> None:
        command = Command(kind="prefetch", term=self._context.term, revisions=revisions)
        self._context.command_worker(incarnation, command)
        logger.info("adapters.tried_again", incarnation=incarnation, revisions=len(revisions))

    def _cool(self, failure: StoreFailure) -> None:
        row = _row(failure, failure.failed_at)
        self._context.transact(lambda c: StoreFailureRepository(c).keep(self._context.pool, row))
        self._failures.keep(failure)
        logger.warning(
            "adapter.cooling",
            revision=failure.revision,
            store=failure.store,
            code=failure.code,
            reason=failure.reason,
            tries=failure.tries,
            pause_s=failure.pause_s,
        )

    def _set_aside_revision(self, told: AdapterFailure, failure: StoreFailure | None) -> None:
        reason = f"{told.code}: {told.message}"

        def quarantine(connection: Connection) -> list[FinishedJob]:
            AdapterRepository(connection).quarantine(self._context.pool, told.revision, reason)
            if failure is not None:
                row = _row(failure, failure.failed_at)
                StoreFailureRepository(connection).keep(self._context.pool, row)
            return self._reject(connection)

        finished = self._context.transact(quarantine)
        self._set_aside.add(told.revision)
        if failure is not None:
            self._failures.keep(failure)
        logger.error("adapter.quarantined", revision=told.revision, reason=reason, jobs=len(finished))
        self._endings.follow(finished)

    def _lift(self, revision: str, worker: WorkerState) -> None:
        pool = self._context.pool
        is_lifted = self._context.transact(lambda c: AdapterRepository(c).lift(pool, revision))
        self._set_aside.discard(revision)
        if is_lifted:
            logger.info("adapter.lifted", revision=revision, hostname=worker.hostname, store=worker.store)

    def _write_changes(self, before: Collection[StoreFailure], now: float) -> None:
        """Write what has changed; after an outage there may be one failure for each revision."""
        known = {(one.revision, one.store) for one in self._failures}
        gone = [key for one in before if (key := (one.revision, one.store)) not in known]
        changed = [_row(one, now) for one in self._failures if one not in before]
        if not gone and not changed:
            return

        def write(connection: Connection) -> None:
            failures = StoreFailureRepository(connection)
            failures.drop(self._context.pool, gone)
            failures.keep(self._context.pool, *changed)

        self._context.transact(write)

    def _reject(self, connection: Connection) -> list[FinishedJob]:
        return AdapterRepository(connection).reject_quarantined(self._context.pool)


def _row(failure: StoreFailure, now: float) -> StoreFailureRow:
    return StoreFailureRow(
        failure.revision,
        failure.store,
        failure.code,
        failure.reason,
        first_ago_s=now - failure.first_at,
        failed_ago_s=now - failure.failed_at,
        left_s=failure.until - now,
        pause_s=failure.pause_s,
        tries=failure.tries,
    )


def _failure(row: StoreFailureRow, now: float) -> StoreFailure:
    return StoreFailure(
        row.digest,
        row.store,
        row.code,
        row.reason,
        first_at=now - row.first_ago_s,
        failed_at=now - row.failed_ago_s,
        until=now + row.left_s,
        pause_s=row.pause_s,
        tries=row.tries,
    )

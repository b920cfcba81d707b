"""Goes its rounds through the ledger: deadlines that passed, workers that came, left or are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import structlog
from kombu.transport.redis import Channel
from sqlalchemy import Connection

from db.records import FinishedJob, WorkerRow
from db.repositories.jobs import JobRepository
from db.repositories.leases import LEADERS_PICTURE, LeaseRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import worker_queue
from scheduler.catalogue import Catalogue
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.instructions import Instructions
from scheduler.leader_context import LeaderContext
from scheduler.periodic import PeriodicTask
from scheduler.quarantine import Quarantine
from scheduler.worker_events import WorkerEvents

MAX_EXPIRED: Final = 500
DEFAULT_EXCHANGE: Final = "lorayard"

UNPROMPTED_S: Final = 15.0
"""So often an idle leader goes its round although the ledger looks as it did at the last one."""

logger = structlog.get_logger(__name__)


class Round(NamedTuple):
    """What one look into the ledger has found."""

    expired: list[FinishedJob]
    ready: list[WorkerRow]
    silent: list[WorkerRow]


@dataclass(slots=True)
class Reaper:
    """Mutable: the rounds of one term; raises redis-py's errors, DatabaseUnavailable and Deposed.

    `may_reap` says whether the ledger has been reachable for a full lease: a worker that could not renew
    through an outage is not lost.
    """

    context: LeaderContext
    catalogue: Catalogue
    instructions: Instructions
    fleet: Fleet
    events: WorkerEvents
    quarantine: Quarantine
    endings: Endings
    may_reap: Callable[[], bool]
    _unprompted: PeriodicTask = field(default_factory=lambda: PeriodicTask(UNPROMPTED_S))
    _seen: str | None = None
    """The ledger's picture at the last round of an idle leader."""

    def reap(self, now: float, *, is_idle: bool) -> None:
        """Go one round; an idle leader looks first whether there is anything new."""
        picture = self.context.database.look(LEADERS_PICTURE, pool=self.context.pool) if is_idle else None
        if self._unprompted.is_due(now) or picture is None or picture != self._seen:
            self._go(is_idle=is_idle)
            self._seen = picture
        self.context.items.chore("quarantine_retries", self.quarantine.try_again)

    def _go(self, *, is_idle: bool) -> None:
        found = self.context.transact(partial(self._look, is_urgent=is_idle))
        self.endings.follow(found.expired)
        self.fleet.take_roll(found.ready)
        self.context.items.chore("quarantine", self.quarantine.follow_catalogue)
        if found.silent and self.may_reap():
            for worker in found.silent:
                self.context.items.attempt("worker_loss", worker.incarnation, partial(self._lose, worker))

    def forget_departed(self) -> None:
        """Forget workers that have left in order, with their queues."""
        self.context.items.attempt_all("worker_departure", self.fleet.unready(), str, self._forget_those_left)

    def _look(self, connection: Connection, *, is_urgent: bool) -> Round:
        pool = self.context.pool
        leases = LeaseRepository(connection)
        chore = self.context.items.chore
        heed = partial(self.instructions.refresh, is_urgent=is_urgent)
        chore("catalogue", lambda: _read_apart(connection, self.catalogue.refresh))
        chore("instructions", lambda: _read_apart(connection, heed))
        return Round(
            expired=JobRepository(connection).expire_due(pool, MAX_EXPIRED),
            ready=leases.ready_workers(pool),
            silent=leases.expired_workers(pool),
        )

    def _lose(self, worker: WorkerRow) -> None:
        name = worker.incarnation
        known = self.fleet.find(name)
        has_ended = known is not None and known.has_ended
        lost = self.context.transact(
            lambda connection: LeaseRepository(connection).lose_worker(name, has_ended=has_ended)
        )
        if not lost.lost:
            return
        logger.warning(
            "worker.lost",
            incarnation=name,
            hostname=worker.hostname,
            requeued=len(lost.requeued),
            ended=len(lost.finished),
        )
        self.endings.follow(lost.finished)
        self.events.take_in([pair.job_id for pair in lost.requeued])
        self._clear_away(name)

    def _forget_those_left(self, names: Sequence[str]) -> None:
        rows = self.context.transact(lambda c: [WorkerRepository(c).get(name) for name in names])
        for name, row in zip(names, rows, strict=True):
            if row is None or row.state in ("gone", "lost"):
                self._clear_away(name)
                logger.info("worker.left", incarnation=name)

    def _clear_away(self, incarnation: str) -> None:
        """Forget a worker and delete its queue; what it gave back without a word of it waits again."""
        worker = self.fleet.drop(incarnation)
        self.events.take_in(list(worker.outstanding) if worker else ())
        queue = worker_queue(incarnation)
        pipeline = self.context.redis.pipeline(transaction=False)
        pipeline.delete(self.context.keys.commands(incarnation), *_queue_keys(queue))
        pipeline.srem(Channel.keyprefix_queue % DEFAULT_EXCHANGE, Channel.sep.join((queue, "", queue)))
        pipeline.execute()


def _read_apart(connection: Connection, read: Callable[[Connection], object]) -> None:
    """Read behind a savepoint, so that the transaction can go on without it."""
    with connection.begin_nested():
        read(connection)


def _queue_keys(queue: str) -> Sequence[str]:
    """Name the lists of a Celery queue, one for each priority step, and its own exchange's bindings."""
    lists = [f"{queue}{Channel.sep}{step}" if step else queue for step in Channel.priority_steps]
    return [*lists, Channel.keyprefix_queue % queue]

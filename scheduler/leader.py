"""One leader's loop: one thread owns the backlog and reads everything that is addressed to the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from db.errors import DatabaseError, Deposed
from db.judge import Fault, explain, fault_of
from db.repositories.backlog import BacklogRepository
from db.repositories.leases import LeaseRepository
from scheduler.cadence import Every
from scheduler.control import Control
from scheduler.dispatch import Dispatcher
from scheduler.fleet import Fleet
from scheduler.housekeeping import Housekeeping
from scheduler.intake import Intake
from scheduler.office import Office
from scheduler.policies import plan
from scheduler.publish import Publisher
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.revokes import BatchBook, RevokeNode
from scheduler.streams import LeaderStreams, Mail
from scheduler.term import TermKeeper
from scheduler.worker_events import WorkerEvents

IDLE_BLOCK_MS: Final = 50
WAITING_BLOCK_MS: Final = 20
"""How long a read may wait; anything that arrives ends it at once."""

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Rhythm:
    """Mutable: what recurs in the loop."""

    patrol: Every = field(default_factory=lambda: Every(0.25))
    publish: Every = field(default_factory=lambda: Every(0.5))
    reclaim: Every = field(default_factory=lambda: Every(2.0))
    introduce: Every = field(default_factory=lambda: Every(5.0))
    see_off: Every = field(default_factory=lambda: Every(5.0))
    verify: Every = field(default_factory=lambda: Every(10.0))
    tidy: Every = field(default_factory=lambda: Every(60.0))


@dataclass(slots=True)
class Leader:
    """Mutable: one term. Any failure of Redis or Postgres makes it start over from the ledger."""

    office: Office
    keeper: TermKeeper
    streams: LeaderStreams
    queue: QueueFeed
    fleet: Fleet
    intake: Intake
    control: Control
    events: WorkerEvents
    dispatcher: Dispatcher
    reaper: Reaper
    publisher: Publisher
    housekeeping: Housekeeping
    revokes: RevokeNode
    clock: Callable[[], float]
    batches: BatchBook = field(default_factory=BatchBook)
    rhythm: Rhythm = field(default_factory=Rhythm)
    has_dispatched: bool = False
    """A round went out, and workers may have room for another one."""

    def lead(self, stopping: threading.Event, on_serving: Callable[[], None]) -> None:
        """Lead until told to stop or deposed; outages are waited out."""
        recovered, retry_s = False, FIRST_RETRY_S
        while not stopping.is_set() and not self.keeper.deposed.is_set():
            if not self.keeper.is_valid:
                stopping.wait(FIRST_RETRY_S)
                continue
            try:
                if not recovered:
                    self.recover()
                    on_serving()
                    recovered, retry_s = True, FIRST_RETRY_S
                self.turn()
            except Deposed as error:
                logger.warning("leader.deposed", term=self.office.term, error=str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, the ledger knows where to go on
                self._note_failure(error)
                recovered = False
                stopping.wait(retry_s)
                retry_s = min(LAST_RETRY_S, retry_s * 2)

    def recover(self) -> None:
        """Build the picture anew from the ledger, and take over what was read but never acknowledged."""
        self.office.enter()
        self.streams.ensure_groups()
        pool = self.office.pool
        ready, leased = self.office.transact(
            lambda c: (LeaseRepository(c).ready_workers(pool), BacklogRepository(c).leased(pool))
        )
        self.fleet.rebuild(ready, leased, self.clock())
        self.queue.restart()
        self.rhythm = Rhythm()
        logger.info("leader.recovered", term=self.office.term, workers=len(ready), leased=len(leased))

    def turn(self) -> None:
        """Read, admit, listen, answer, dispatch, and do what is due."""
        now = self.clock()
        if self.rhythm.patrol.is_due(now) or self.fleet.has_strangers:
            self.reaper.patrol()
        if self.rhythm.reclaim.is_due(now):
            self._deal_with(self.streams.reclaim())
        self._deal_with(self.streams.read(self._block_ms()))
        self.control.cancel(self.batches.jobs_of(self.revokes.take()))
        self.queue.fill()
        self._dispatch()
        self._recurring(self.clock())

    def _deal_with(self, mail: Mail) -> None:
        if mail.jobs:
            self.queue.has_more |= self.intake.admit(mail.jobs) > 0
        if mail.events:
            self.events.listen(mail.events)
        if mail.control:
            self.control.obey(mail.control)

    def _dispatch(self) -> None:
        now = self.clock()
        self.has_dispatched = False
        planned = plan(self.queue.backlog, self.fleet.views(now), now)
        if planned:
            done = self.dispatcher.dispatch(planned, self.fleet, now)
            for batch in done.batches:
                self.batches.note(batch.batch_id, (job.job_id for job in batch.jobs))
            self.queue.put_back(done.passed_over)
            self.has_dispatched = bool(done.batches)

    def _recurring(self, now: float) -> None:
        if self.rhythm.publish.is_due(now):
            self.publisher.publish()
        if self.rhythm.introduce.is_due(now):
            self.publisher.introduce()
        if self.rhythm.see_off.is_due(now):
            self.reaper.see_off()
        if self.rhythm.verify.is_due(now):
            self.queue.verify()
        if self.rhythm.tidy.is_due(now) and self.housekeeping.tidy():
            self.rhythm.tidy.hasten()

    def _block_ms(self) -> int | None:
        if self.queue.has_more or self.has_dispatched:
            return None
        return WAITING_BLOCK_MS if len(self.queue.backlog) else IDLE_BLOCK_MS

    def _note_failure(self, error: Exception) -> None:
        is_of_ledger = isinstance(error, (DatabaseError, SQLAlchemyError))
        if is_of_ledger and fault_of(error) is Fault.SERVER:
            self.keeper.contact_lost()
        expected = is_of_ledger or isinstance(error, (RedisError, BrokerError))
        logger.error("leader.failed", term=self.office.term, error=explain(error), exc_info=not expected)

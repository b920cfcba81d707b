"""One leader's loop: one thread owns the backlog and reads everything that is addressed to the leader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from db.errors import DatabaseError, Deposed
from db.judge import Fault, explain, fault_of
from db.repositories.backlog import BacklogRepository
from db.repositories.leases import LeaseRepository
from lorayard.process.restarts import RestartBudget
from lorayard.process.stop_request import StopRequest
from scheduler.adapter_collector import AdapterCollector
from scheduler.cadence import Every
from scheduler.control import Control
from scheduler.dispatch import Dispatcher
from scheduler.fleet import Fleet
from scheduler.housekeeping import Housekeeping
from scheduler.intake import Intake
from scheduler.office import Office
from scheduler.outages import is_outage, is_passing
from scheduler.policies import plan
from scheduler.publish import Publisher
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.retention import Retention
from scheduler.revokes import BatchBook, RevokeNode
from scheduler.streams import LeaderStreams, Mail
from scheduler.term import TermKeeper
from scheduler.worker_events import WorkerEvents

IDLE_BLOCK_MS: Final = 50
WAITING_BLOCK_MS: Final = 20
"""How long a read may wait; anything that arrives ends it at once."""

RETENTION_PAUSE_S: Final = 1.0
"""Between two batches of deletions, so that the loop is the jobs' for nearly all of its time."""

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
    retention: Every = field(default_factory=lambda: Every(60.0))
    collection: Every = field(default_factory=lambda: Every(600.0))


@dataclass(slots=True)
class Leader:
    """Mutable: one term. Any failure of Redis or Postgres makes it start over from the ledger.

    So does a failure of its own, three times in a minute; then the process gives up. What it meets with one
    entry, or in one of its parts, keeps no other part from its turn.
    """

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
    retention: Retention
    collector: AdapterCollector
    revokes: RevokeNode
    clock: Callable[[], float]
    batches: BatchBook = field(default_factory=BatchBook)
    rhythm: Rhythm = field(default_factory=Rhythm)
    has_dispatched: bool = False
    """A round went out, and workers may have room for another one."""
    failure: Exception | None = None
    """The first failure of its own in this turn."""

    def lead(self, stopping: StopRequest, on_serving: Callable[[], None]) -> bool:
        """Lead until told to stop or deposed; outages are waited out. False where it cannot go on."""
        recovered, retry_s = False, FIRST_RETRY_S
        restarts = RestartBudget(self.clock)
        while not stopping.is_set() and not self.keeper.deposed.is_set():
            if not self.keeper.is_valid:
                stopping.wait(FIRST_RETRY_S)
                continue
            try:
                if not recovered:
                    self.recover()
                    on_serving()
                    recovered = True
                self.turn()
                retry_s = FIRST_RETRY_S
            except Deposed as error:
                logger.warning("leader.deposed", term=self.office.term, error=str(error))
                return True
            except Exception as error:  # noqa: BLE001 - whatever it was, the ledger knows where to go on
                self._note_failure(error)
                if not is_outage(error) and not restarts.take():
                    logger.critical("leader.broken", term=self.office.term, error=explain(error))
                    return False
                recovered = False
                stopping.wait(retry_s)
                retry_s = min(LAST_RETRY_S, retry_s * 2)
        return True

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
        """Read, admit, listen, answer, dispatch, and do what is due; raises what went wrong at the end."""
        now = self.clock()
        self.failure = None
        if self.rhythm.patrol.is_due(now) or self.fleet.has_strangers:
            self._part("reaper", self.reaper.patrol)
        if self.rhythm.reclaim.is_due(now):
            self._deal_with(self.streams.reclaim())
        self._deal_with(self.streams.read(self._block_ms()))
        self._part("revokes", lambda: self.control.cancel(self.batches.jobs_of(self.revokes.take())))
        self._part("queue", self.queue.fill)
        self._part("dispatch", self._dispatch)
        self._recurring(self.clock())
        if self.failure is not None:
            raise self.failure

    def _part(self, name: str, work: Callable[[], object], *, is_own: bool = True) -> None:
        """Do one part of a turn; a failure that is not the leader's `own` may lie in what others sent."""
        try:
            work()
        except Exception as error:
            if is_passing(error):
                raise
            logger.exception("leader.part_failed", part=name, term=self.office.term, error=explain(error))
            if is_own:
                self.failure = self.failure or error

    def _deal_with(self, mail: Mail) -> None:
        """Hand out what was read; what its part could not deal with is read again at the next reclaim."""
        if mail.jobs:
            self._part("intake", lambda: self._admit(mail), is_own=False)
        if mail.events:
            self._part("worker_events", lambda: self.events.listen(mail.events), is_own=False)
        if mail.control:
            self._part("control", lambda: self.control.obey(mail.control), is_own=False)

    def _admit(self, mail: Mail) -> None:
        before, self.queue.has_more = self.queue.has_more, True  # some may be in, should the rest fail
        self.queue.has_more = self.intake.admit(mail.jobs) > 0 or before

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
            self._part("publish", self.publisher.publish, is_own=False)
        if self.rhythm.introduce.is_due(now):
            self._part("introduce", self.publisher.introduce, is_own=False)
        if self.rhythm.see_off.is_due(now):
            self._part("see_off", self.reaper.see_off)
        if self.rhythm.verify.is_due(now):
            self._part("verify", self.queue.verify)
        if self.rhythm.tidy.is_due(now):
            self._part("tidy", self._tidy, is_own=False)
        if self.rhythm.retention.is_due(now):
            self._part("retention", lambda: self._delete_old(now), is_own=False)
        if self.rhythm.collection.is_due(now):
            self._part("collection", self.collector.sweep, is_own=False)

    def _tidy(self) -> None:
        if self.housekeeping.tidy():
            self.rhythm.tidy.hasten()

    def _delete_old(self, now: float) -> None:
        if self.retention.delete_batch():
            self.rhythm.retention.again_in(RETENTION_PAUSE_S, now)

    def _block_ms(self) -> int | None:
        if self.queue.has_more or self.has_dispatched:
            return None
        return WAITING_BLOCK_MS if len(self.queue.backlog) else IDLE_BLOCK_MS

    def _note_failure(self, error: Exception) -> None:
        is_of_ledger = isinstance(error, (DatabaseError, SQLAlchemyError))
        if is_of_ledger and fault_of(error) is Fault.SERVER:
            self.keeper.contact_lost()
        logger.error(
            "leader.failed", term=self.office.term, error=explain(error), exc_info=not is_outage(error)
        )

"""One leader's loop: one thread owns the backlog and reads everything that is addressed to the leader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from db.errors import Deposed, ForeignLedger
from db.judge import Fault, explain, fault_of, is_ledger_outage
from db.records import LeasedRow, WorkerRow
from db.repositories.backlog import BacklogRepository
from db.repositories.leases import LeaseRepository
from lorayard.process.restarts import RestartBudget
from lorayard.process.stop_request import StopRequest
from lorayard.transport.refusals import has_no_group, is_out_of_memory
from scheduler.adapter_collector import AdapterCollector
from scheduler.admission_publisher import AdmissionPublisher
from scheduler.control import Control
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.housekeeping import Housekeeping
from scheduler.instructions import Instructions
from scheduler.intake import Intake
from scheduler.item_failures import MAX_FAILURES
from scheduler.leader_context import LeaderContext
from scheduler.outages import is_outage, is_passing, told
from scheduler.periodic import PeriodicTasks
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.retention import Retention
from scheduler.revokes import RevokeNode
from scheduler.rounds import Rounds
from scheduler.shares import Shares
from scheduler.streams import LeaderStreams, StreamBatch
from scheduler.term import TermKeeper
from scheduler.worker_commands import WorkerCommands
from scheduler.worker_events import WorkerEvents

IDLE_BLOCK_MS: Final = 500
BUSY_BLOCK_MS: Final = 50
WAITING_BLOCK_MS: Final = 20
"""How long a read may wait; anything that arrives ends it at once.

A wish to stop does not, nor does a Redis that is flushed, whose clients wait a second for the catalogue.
"""

RETENTION_PAUSE_S: Final = 1.0
"""Between two batches of deletions, so that the loop is the jobs' for nearly all of its time."""

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0

FULL_PAUSE_S: Final = 1.0
"""So long is nothing dispatched into a Redis at its memory limit, while what it holds is read and deleted."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Leader:
    """Mutable: one term. Any failure of Redis or Postgres makes it start over from the ledger.

    So does, three times in a minute, a failure of what nothing can be served without; then the process gives
    up. What fails at one item, or in one of the other parts, the chores, keeps no other from its turn.
    """

    context: LeaderContext
    keeper: TermKeeper
    instructions: Instructions
    streams: LeaderStreams
    queue: QueueFeed
    fleet: Fleet
    intake: Intake
    control: Control
    events: WorkerEvents
    shares: Shares
    rounds: Rounds
    commands: WorkerCommands
    endings: Endings
    reaper: Reaper
    publisher: AdmissionPublisher
    housekeeping: Housekeeping
    retention: Retention
    collector: AdapterCollector
    revokes: RevokeNode
    clock: Callable[[], float]
    periodic: PeriodicTasks = field(default_factory=PeriodicTasks)
    has_dispatched: bool = False
    """A round went out, and workers may have room for another one."""
    dispatch_from: float = 0.0
    """Nothing is dispatched before, on the loop's clock: Redis had no room for it."""
    num_lapses: int = 0
    """Those of the term for which nobody is blamed any more."""
    failure: Exception | None = None
    """The first failure in this turn of what nothing can be served without."""

    def lead(self, stopping: StopRequest, on_serving: Callable[[], None]) -> bool:
        """Lead until told to stop or deposed; outages are waited out. False if it cannot go on."""
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
            except ForeignLedger as error:
                logger.critical("leader.foreign_ledger", term=self.context.term, error=str(error))
                return False
            except Deposed as error:
                logger.warning("leader.deposed", term=self.context.term, error=str(error))
                return True
            except Exception as error:  # noqa: BLE001 - whatever it was, the ledger knows where to go on
                self._note_failure(error)
                if not is_outage(error) and not restarts.take():
                    logger.critical("leader.broken", term=self.context.term, error=explain(error))
                    return False
                recovered = False
                stopping.wait(retry_s)
                retry_s = min(LAST_RETRY_S, retry_s * 2)
        return True

    def close(self) -> None:
        """Stop what goes on beside the loop."""
        self.collector.close()

    def recover(self) -> None:
        """Build the picture anew from the ledger, and take over what was read but never acknowledged."""
        self.context.enter()
        self.streams.ensure_groups()
        pool = self.context.pool

        def read(connection: Connection) -> tuple[list[WorkerRow], list[LeasedRow]]:
            return LeaseRepository(connection).ready_workers(pool), BacklogRepository(connection).leased(pool)

        self._begin_with("instructions", partial(self.instructions.refresh, is_urgent=True))
        ready, leased = self.context.transact(read)
        self.fleet.rebuild(ready, leased, self.clock())
        self.queue.restart()
        self._begin_with("restored_shares", lambda connection: self.shares.restore(connection, leased))
        self.periodic = PeriodicTasks()
        # A Redis that was flushed has forgotten them, and clients look for them now.
        self.context.items.chore("publish", self.publisher.publish)
        self.context.items.chore("publish_pool", self.publisher.publish_pool)
        logger.info("leader.recovered", term=self.context.term, workers=len(ready), leased=len(leased))

    def _begin_with(self, name: str, read: Callable[[Connection], object]) -> None:
        """Read what a term should begin with; it begins without what has failed three times."""
        for _ in range(MAX_FAILURES):
            if self.context.items.chore(name, lambda: self.context.transact(read)):
                return

    @property
    def is_idle(self) -> bool:
        """Whether no job is queued, being handed out, or in a worker's hand."""
        return not (
            self.queue.has_more
            or len(self.queue.backlog)
            or self.has_dispatched
            or self.fleet.has_strangers
            or self.fleet.has_outstanding
        )

    def turn(self) -> None:
        """Read, admit, listen, answer, dispatch, and do what is due; raises what went wrong at the end."""
        now, chore = self.clock(), self.context.items.chore
        self.failure = None
        if self.periodic.reap.is_due(now, is_idle=self.is_idle) or self.fleet.has_strangers:
            self._part("reaper", self._reap)
        if self.periodic.reclaim.is_due(now):
            self._deal_with(self.streams.reclaim())
        self._deal_with(self.streams.read(self._block_ms()))
        if self.periodic.hearing.is_due(self.clock(), is_idle=self.is_idle):
            chore("hearing", self._judge_hearing)
        chore("revokes", lambda: self.control.revoke(self.fleet.jobs_of(self.revokes.take())))
        self._part("queue", self.queue.fill)
        if self.clock() >= self.dispatch_from:
            self._part("dispatch", self._dispatch)
            if self.periodic.commands.is_due(self.clock(), is_idle=self.is_idle):
                chore("commands", self.commands.send)
        chore("end_put_aside", self.endings.end_put_aside)
        chore("end_hopeless", self.endings.end_hopeless)
        self._recurring(self.clock())
        if self.failure is not None:
            raise self.failure

    def _part(self, name: str, work: Callable[[], object], *, is_own: bool = True) -> None:
        """Do what nothing is served without; a failure not the leader's `own` may lie in what others sent."""
        try:
            work()
        except Exception as error:
            if is_passing(error):
                raise
            logger.exception("leader.part_failed", part=name, term=self.context.term, error=explain(error))
            if is_own:
                self.failure = self.failure or error

    def _deal_with(self, batch: StreamBatch) -> None:
        """Hand out what was read; what its part could not deal with is read again at the next reclaim."""
        if batch.jobs:
            self._part("intake", lambda: self._admit(batch), is_own=False)
        if batch.events:
            self._excuse_standstill()
            self._part("worker_events", lambda: self.events.listen(batch.events), is_own=False)
        if batch.control:
            self._part("control", lambda: self.control.obey(batch.control), is_own=False)

    def _admit(self, batch: StreamBatch) -> None:
        before, self.queue.has_more = self.queue.has_more, True  # some may be in, should the rest fail
        self.queue.has_more = self.intake.admit(batch.jobs) > 0 or before

    def _reap(self) -> None:
        version = self.publisher.catalogue_version
        self.reaper.reap(self.clock(), is_idle=self.is_idle)
        if version != self.publisher.catalogue_version:
            self.periodic.publish.hasten()  # clients refuse adapters that they do not find in Redis

    def _dispatch(self) -> None:
        self.has_dispatched = False
        if self.queue.is_plannable:
            self.has_dispatched = self.rounds.run(self.clock())

    def _judge_hearing(self) -> None:
        self._excuse_standstill()
        for worker in self.fleet.ready():
            judge = partial(self.events.judge_hearing, worker)
            self.context.items.attempt("worker_hearing", worker.incarnation, judge)

    def _excuse_standstill(self) -> None:
        """Have workers judged by later lists alone if the term ran out: most likely, none was read."""
        if not self.keeper.is_valid or self.num_lapses != self.keeper.num_lapses:
            self.num_lapses = self.keeper.num_lapses
            self.fleet.excuse_standstill(self.clock())

    def _recurring(self, now: float) -> None:
        chore = self.context.items.chore
        if self.periodic.publish.is_due(now, is_idle=self.is_idle):
            chore("publish", self.publisher.publish)
        if self.periodic.publish_pool.is_due(now):
            chore("publish_pool", self.publisher.publish_pool)
        if self.periodic.shares.is_due(now, is_idle=self.is_idle):
            chore("shares", self.shares.refresh)
            chore("outlook", self._look_out)
        if self.periodic.forget_departed.is_due(now):
            chore("forget_departed", self.reaper.forget_departed)
        if self.periodic.verify.is_due(now):
            chore("verify", self.queue.verify)
        if self.periodic.fold_usage.is_due(now):
            chore("fold_usage", self._fold_usage)
        if self.periodic.retention.is_due(now):
            chore("retention", lambda: self._delete_old(now))
        if self.periodic.collection.is_due(now):
            chore("collection", self.collector.sweep)

    def _look_out(self) -> None:
        self.queue.backlog.outlook = self.fleet.outlook()

    def _fold_usage(self) -> None:
        if self.housekeeping.fold_usage():
            self.periodic.fold_usage.hasten()

    def _delete_old(self, now: float) -> None:
        if self.retention.delete_batch():
            self.periodic.retention.again_in(RETENTION_PAUSE_S, now)

    def _block_ms(self) -> int | None:
        if self.queue.has_more or self.has_dispatched:
            return None
        if self.is_idle:
            return IDLE_BLOCK_MS
        return WAITING_BLOCK_MS if len(self.queue.backlog) else BUSY_BLOCK_MS

    def _note_failure(self, error: Exception) -> None:
        if has_no_group(error):
            logger.warning("leader.redis_flushed", term=self.context.term, error=told(error))
            return
        if is_ledger_outage(error) and fault_of(error) is Fault.SERVER:
            self.keeper.contact_lost()
        if is_out_of_memory(error):
            self.dispatch_from = self.clock() + FULL_PAUSE_S
        is_own = not is_outage(error)
        logger.error("leader.failed", term=self.context.term, error=told(error), exc_info=is_own)

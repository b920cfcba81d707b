"""Listens to workers: what ended, what they hold, where adapters are, and what could not be loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from db.records import JobAttempt
from db.repositories.leases import LeaseRepository
from lorayard.contract.messages import WorkerEvent
from lorayard.contract.states import JobState
from lorayard.process.items import one_item
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.outages import is_passing
from scheduler.quarantine import Quarantine
from scheduler.queue_feed import QueueFeed
from scheduler.streams import LeaderStreams, StreamEntry
from scheduler.worker_state import WorkerState

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """The completions stream of one term; raises redis-py's errors, DatabaseUnavailable and Deposed."""

    context: LeaderContext
    streams: LeaderStreams
    fleet: Fleet
    queue: QueueFeed
    quarantine: Quarantine
    endings: Endings
    clock: Callable[[], float]

    def listen(self, entries: Sequence[StreamEntry]) -> None:
        """Take over what workers say, then acknowledge it."""
        came_back: list[UUID] = []
        for entry in entries:
            try:
                event = WorkerEvent.from_entry(dict(entry.fields))
            except ValueError as error:
                logger.warning("worker_event.malformed", entry_id=entry.entry_id, error=str(error)[:300])
                continue
            came_back += [job.job_id for job in event.ended if job.state is JobState.QUEUED]
            worker = self.fleet.get(event.incarnation)
            if worker is not None:
                # Should it fail, the worker's next heartbeat makes good what it told.
                with one_item(
                    "worker_events", is_passing, entry_id=entry.entry_id, told_by=event.incarnation
                ):
                    self._take(worker, event)
        self.take_in(came_back)
        self.streams.acknowledge(entries)

    def take_in(self, job_ids: Sequence[UUID]) -> None:
        """Let jobs wait again that came back; those of a quarantined adapter end instead.

        Of jobs that may have come back, the ledger knows which have: the others are left alone.
        """
        if not (came_back := self.queue.put_back(job_ids)):
            return
        logger.info("jobs.requeued", jobs=came_back, job_ids=[str(job_id) for job_id in job_ids[:20]])
        if self.quarantine.revisions:
            self.quarantine.end_jobs()

    def _take(self, worker: WorkerState, event: WorkerEvent) -> None:
        now = self.clock()
        worker.is_draining = event.draining
        worker.end(event.ended, now)
        loaded = worker.note_residency(
            event.residency_epoch, event.residency, is_whole=event.held is not None
        )
        self.quarantine.note_loads(worker, loaded, now)
        if event.failures:
            self.quarantine.judge(worker, event.failures, now)
        if event.held is not None and (missing := worker.reconcile(event.held, now)):
            self._release(worker, missing)

    def _release(self, worker: WorkerState, missing: Sequence[JobAttempt]) -> None:
        """Take back what a worker has not got; the ledger knows whether it has ended meanwhile."""
        incarnation = worker.incarnation
        released = self.context.transact(
            lambda connection: LeaseRepository(connection).release(incarnation, missing)
        )
        for pair in missing:
            worker.take_back(pair)
        logger.warning(
            "worker.lost_jobs", incarnation=incarnation, missing=len(missing), requeued=len(released.requeued)
        )
        self.endings.follow(released.finished)
        # All of them: the worker may have given some back itself, and its word of that was lost.
        self.take_in([pair.job_id for pair in missing])

"""Listens to workers: what ended, what they hold, where adapters are, and what could not be loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy import Connection

from db.records import FinishedJob, JobAttempt, Released
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from lorayard.contract.messages import ANSWERED_FIELD, WorkerEvent
from lorayard.contract.states import JobState
from scheduler.deliveries import MAX_LOST, Deliveries
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
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
    deliveries: Deliveries
    ping: Callable[[str, UUID], None]
    """Sends a ping to a worker of this name through its own queue."""
    clock: Callable[[], float]

    def listen(self, entries: Sequence[StreamEntry]) -> None:
        """Take over what workers say, then acknowledge it."""
        came_back: list[UUID] = []
        for entry in entries:
            self.context.items.attempt("worker_event", entry.name, partial(self._hear, entry, came_back))
        self.take_in(came_back)
        self.streams.acknowledge(entries)

    def _hear(self, entry: StreamEntry, came_back: list[UUID]) -> None:
        try:
            event = WorkerEvent.from_entry(dict(entry.fields))
            answered = _answered(entry)
        except ValueError as error:
            logger.warning("worker_event.malformed", entry_id=entry.entry_id, error=str(error)[:300])
            return
        came_back += [job.job_id for job in event.ended if job.state is JobState.QUEUED]
        worker = self.fleet.get(event.incarnation)
        if worker is not None:
            # Should it fail, the worker's next heartbeat makes good what it told; the third time in a row
            # the worker is not planned for a while.
            take = partial(self._take, worker, event, answered)
            self.context.items.attempt("worker_events", worker.incarnation, take)

    def take_in(self, job_ids: Sequence[UUID]) -> None:
        """Let jobs wait again that came back; those of a quarantined adapter end instead.

        Of jobs that may have come back, the ledger knows which have: the others are left alone.
        """
        if not (came_back := self.queue.put_back(job_ids)):
            return
        logger.info("jobs.requeued", jobs=came_back, job_ids=[str(job_id) for job_id in job_ids[:20]])
        if self.quarantine.revisions:
            self.context.items.chore("quarantined_jobs", self.quarantine.end_jobs)

    def _take(self, worker: WorkerState, event: WorkerEvent, answered: UUID | None) -> None:
        now = self.clock()
        worker.is_draining = event.draining
        worker.end(event.ended, now)
        self._settle(event)
        self.deliveries.arrived(job.job_id for job in event.ended)
        loaded = worker.note_residency(
            event.residency_epoch, event.residency, is_whole=event.held is not None
        )
        self.quarantine.note_loads(worker, loaded, now)
        if event.failures:
            self.quarantine.judge(worker, event.failures, now)
        if answered is not None:
            self._hear_answer(worker, answered)
        if event.held is not None:
            let_go = worker.reconcile(event.held, now)
            self.deliveries.arrived(worker.listed_in(event.held))
            if let_go:
                self._release(worker, let_go)
            self.judge_hearing(worker)

    def _settle(self, event: WorkerEvent) -> None:
        """Set the tenants' charges right; of a job that came back, the queue undoes it."""
        ended = [job for job in event.ended if job.state.is_terminal]
        for job in ended:
            self.queue.fairness.settle(job.job_id, job.prompt_tokens, job.completion_tokens)
        self.endings.flower.ended_at_workers([job.job_id for job in ended])

    def judge_hearing(self, worker: WorkerState) -> None:
        """Take back what has not arrived at a worker; one that seems deaf is pinged until it answers."""
        now = self.clock()
        if missing := worker.missing(now):
            given_up = self.deliveries.lost(pair.job_id for pair in missing.lost)
            if missing.unheard:
                logger.warning("worker.deaf", incarnation=worker.incarnation, jobs=len(missing.unheard))
            self._release(worker, [*missing.lost, *missing.excused, *missing.unheard], given_up)
        if (ping := worker.hearing.next_ping(now)) is not None:
            self.ping(worker.incarnation, ping)

    def _hear_answer(self, worker: WorkerState, ping: UUID) -> None:
        """Give a deaf worker jobs again; a job that it passed over although it hears has lost a message."""
        was_deaf = worker.hearing.is_deaf
        passed_over = [job_id for job_id in worker.hearing.answered(ping) if self._is_unlisted(job_id)]
        if was_deaf and not worker.hearing.is_deaf:
            logger.info("worker.hears", incarnation=worker.incarnation, passed_over=len(passed_over))
        if given_up := self.deliveries.lost(passed_over):
            self.endings.follow(self.context.transact(lambda connection: _give_up(connection, given_up)))

    def _is_unlisted(self, job_id: UUID) -> bool:
        """Whether a job waits, or is on its way: no worker has listed it since."""
        return job_id in self.queue or self.fleet.is_on_its_way(job_id)

    def _release(
        self, worker: WorkerState, missing: Sequence[JobAttempt], given_up: Sequence[UUID] = ()
    ) -> None:
        """Take back what a worker has not got; the ledger knows whether it has ended meanwhile."""
        incarnation = worker.incarnation

        def release(connection: Connection) -> tuple[Released, list[FinishedJob]]:
            released = LeaseRepository(connection).release(incarnation, missing)
            return released, _give_up(connection, given_up)

        released, undeliverable = self.context.transact(release)
        for pair in missing:
            worker.take_back(pair)
        logger.warning(
            "worker.lost_jobs", incarnation=incarnation, missing=len(missing), requeued=len(released.requeued)
        )
        self.endings.follow([*released.finished, *undeliverable])
        # All of them: the worker may have given some back itself, and its word of that was lost.
        self.take_in([pair.job_id for pair in missing])


def _answered(entry: StreamEntry) -> UUID | None:
    """Read which ping an entry answers; raises ValueError if that is none."""
    ping = entry.fields.get(ANSWERED_FIELD)
    return None if ping is None else UUID(ping.decode())


def _give_up(connection: Connection, job_ids: Sequence[UUID]) -> list[FinishedJob]:
    """End queued jobs that could not be delivered; one that is in a worker's hand again goes on."""
    message = (
        f"{MAX_LOST} messages with the job reached no worker although others did: look into the workers' "
        "logs for micro_batch.not_read, and submit a smaller job"
    )
    return JobRepository(connection).fail_queued(job_ids, "undeliverable", message) if job_ids else []

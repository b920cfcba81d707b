"""Gives planned jobs to workers: leases are committed first, then micro-batches go to their queues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from celery import Celery
from kombu.entity import Exchange, Queue
from sqlalchemy import Connection

from db.judge import explain
from db.repositories.leases import LeaseRepository
from lorayard.contract.ids import uuid7
from lorayard.contract.keys import worker_queue
from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.tasks import RUN_MICRO_BATCH
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.outages import is_passing
from scheduler.policies import PendingJob, PlannedBatch
from scheduler.worker_state import Outstanding

MAX_MESSAGE_BYTES: Final = 4_000_000
"""Requests in one Celery message; a larger micro-batch goes out in several."""

logger = structlog.get_logger(__name__)


class Dispatched(NamedTuple):
    """What became of one round; `passed_over` were planned but not leased."""

    batches: tuple[MicroBatch, ...]
    passed_over: tuple[UUID, ...]


class Dispatcher:
    """The leases and messages of one term; raises kombu's errors, DatabaseUnavailable and Deposed."""

    def __init__(self, context: LeaderContext, app: Celery, *, max_model_len: int) -> None:
        self._context = context
        self._app = app
        self._max_model_len = max_model_len

    def dispatch(self, planned: Sequence[PlannedBatch], fleet: Fleet, now: float) -> Dispatched:
        """Lease a whole round in one transaction, then publish; what cannot be published is released."""
        leased = self._context.transact(lambda connection: self._lease(connection, planned))
        passed_over: list[UUID] = []
        batches: list[MicroBatch] = []
        for plan, jobs in zip(planned, leased, strict=True):
            self._note(plan, jobs, fleet, now)
            got = {job.job_id for job in jobs}
            passed_over += [job.job_id for job in plan.jobs if job.job_id not in got]
            batches += self._batches(plan, jobs)
        self._publish_all(batches)
        return Dispatched(tuple(batches), tuple(passed_over))

    def _lease(self, connection: Connection, planned: Sequence[PlannedBatch]) -> list[list[BatchJob]]:
        leases = LeaseRepository(connection)
        context = self._context
        return [
            leases.lease(context.pool, plan.incarnation, [job.job_id for job in plan.jobs], term=context.term)
            for plan in planned
        ]

    def _note(self, plan: PlannedBatch, jobs: Sequence[BatchJob], fleet: Fleet, now: float) -> None:
        """Count leased jobs as outstanding; a worker that got none is not ready any more."""
        worker = fleet.find(plan.incarnation)
        if worker is None:
            return
        if not jobs:
            worker.is_ready = False
        headers = {job.job_id: job for job in plan.jobs}
        for job in jobs:
            worker.give(job.job_id, self._outstanding(headers[job.job_id], job, now))

    def _outstanding(self, header: PendingJob, job: BatchJob, now: float) -> Outstanding:
        tokens = min(header.prompt_tokens + header.max_tokens, self._max_model_len)
        return Outstanding(job.attempt, job.revision, tokens, header.group is not None, now)

    def _batches(self, plan: PlannedBatch, jobs: Sequence[BatchJob]) -> Iterator[MicroBatch]:
        sizes = {header.job_id: header.request_bytes for header in plan.jobs}
        for part in _parts(jobs, sizes):
            yield MicroBatch(
                batch_id=uuid7(),
                pool=self._context.pool,
                incarnation=plan.incarnation,
                term=self._context.term,
                jobs=tuple(part),
            )

    def _publish_all(self, batches: Sequence[MicroBatch]) -> None:
        for number, batch in enumerate(batches):
            try:
                self._publish(batch)
            except Exception:
                self._release(batches[number:])
                raise

    def _publish(self, batch: MicroBatch) -> None:
        name = worker_queue(batch.incarnation)
        with self._app.producer_or_acquire() as producer:
            self._app.send_task(
                RUN_MICRO_BATCH,
                args=[batch.model_dump(mode="json", exclude_unset=True)],
                task_id=str(batch.batch_id),
                producer=producer,
                queue=_direct(name),
                # The worker declares its queue; declared here, a lost worker's would come to life again.
                declare=[],
                argsrepr=f"({len(batch.jobs)} jobs for {batch.incarnation})",
                kwargsrepr="{}",
                ignore_result=True,
            )
        logger.info(
            "micro_batch.dispatched",
            micro_batch_id=str(batch.batch_id),
            incarnation=batch.incarnation,
            jobs=len(batch.jobs),
        )

    def _release(self, batches: Sequence[MicroBatch]) -> None:
        """Give leases back whose message did not go out; if the ledger is away too, held lists repair it."""
        logger.warning("micro_batches.not_published", batches=len(batches))
        try:
            self._context.transact(lambda connection: self._release_in(connection, batches))
        except Exception as error:
            if not is_passing(error):
                raise
            logger.warning("micro_batches.not_released", batches=len(batches), error=explain(error))

    def _release_in(self, connection: Connection, batches: Sequence[MicroBatch]) -> None:
        for batch in batches:
            pairs = [(job.job_id, job.attempt) for job in batch.jobs]
            LeaseRepository(connection).release(batch.incarnation, pairs)


def _direct(name: str) -> Queue:
    """Address a queue by its name alone, through no exchange."""
    return Queue(name, Exchange(""), routing_key=name)  # type: ignore[no-untyped-call]


def _parts(jobs: Sequence[BatchJob], sizes: Mapping[UUID, int]) -> Iterator[list[BatchJob]]:
    """Cut jobs into messages by the bytes of their requests."""
    part: list[BatchJob] = []
    total = 0
    for job in jobs:
        total += sizes[job.job_id]
        if part and total > MAX_MESSAGE_BYTES:
            yield part
            part, total = [], sizes[job.job_id]
        part.append(job)
    if part:
        yield part

"""Gives planned jobs to workers: leases are committed first, then micro-batches go to their queues."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import structlog
from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.messaging import Producer
from sqlalchemy import Connection

from db.records import JobAttempt
from db.repositories.leases import LeaseRepository
from lorayard.contract.ids import uuid7
from lorayard.contract.keys import worker_queue
from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.tasks import PING, RUN_MICRO_BATCH
from scheduler.deliveries import Deliveries
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.policies import OutputLengths, PendingJob, PlannedBatch
from scheduler.worker_state import Outstanding

MAX_MESSAGE_BYTES: Final = 4_000_000
"""Requests in one Celery message; a larger micro-batch goes out in several."""

MAX_ROUND_BYTES: Final = 32_000_000
"""Requests that one transaction reads; a larger round takes several, each published before the next."""

logger = structlog.get_logger(__name__)
T = TypeVar("T")


class Dispatched(NamedTuple):
    """What became of one round; `passed_over` were planned but not leased."""

    batches: tuple[MicroBatch, ...]
    passed_over: tuple[UUID, ...]


class Dispatcher:
    """The leases and messages of one term; raises kombu's errors, DatabaseUnavailable and Deposed."""

    def __init__(
        self,
        context: LeaderContext,
        app: Celery,
        deliveries: Deliveries,
        lengths: OutputLengths,
        *,
        max_model_len: int,
        max_batch_jobs: int,
    ) -> None:
        """A micro-batch, which is one Celery message, carries at most `max_batch_jobs`.

        `lengths` tell how many tokens jobs will hold; what a round was planned by is counted here, too.
        """
        self._context = context
        self._app = app
        self._deliveries = deliveries
        self._lengths = lengths
        self._max_model_len = max_model_len
        self._max_batch_jobs = max_batch_jobs
        self._messages = itertools.count()

    def dispatch(self, planned: Sequence[PlannedBatch], fleet: Fleet, now: float) -> Dispatched:
        """Lease a round, then publish; what cannot be published is released."""
        done = [self._dispatch(part, fleet, now) for part in _rounds(planned)]
        return Dispatched(
            tuple(batch for part in done for batch in part.batches),
            tuple(job_id for part in done for job_id in part.passed_over),
        )

    def ping(self, incarnation: str, ping: UUID) -> None:
        """Ask a worker, through its own queue, for a sign that it hears."""
        with self._app.producer_or_acquire() as producer:
            self._send(PING, incarnation, str(ping), ping, producer, shown=str(ping))
        logger.info("worker.pinged", incarnation=incarnation, ping=str(ping))

    def _dispatch(self, planned: Sequence[PlannedBatch], fleet: Fleet, now: float) -> Dispatched:
        leased = self._context.transact(lambda connection: self._lease(connection, planned))
        unsent = {
            plan.incarnation: {JobAttempt(job.job_id, job.attempt) for job in jobs}
            for plan, jobs in zip(planned, leased, strict=True)
        }
        passed_over: list[UUID] = []
        batches: list[MicroBatch] = []
        try:
            for plan, jobs in zip(planned, leased, strict=True):
                messages = list(self._batches(plan, jobs))
                self._note(plan, messages, fleet, now)
                got = {job.job_id for job in jobs}
                passed_over += [job.job_id for job in plan.jobs if job.job_id not in got]
                batches += messages
            self._publish_all(batches, unsent)
        except Exception:
            self._release(unsent, fleet)
            raise
        return Dispatched(tuple(batches), tuple(passed_over))

    def _lease(self, connection: Connection, planned: Sequence[PlannedBatch]) -> list[list[BatchJob]]:
        leases = LeaseRepository(connection)
        context = self._context
        return [
            leases.lease(context.pool, plan.incarnation, [job.job_id for job in plan.jobs], term=context.term)
            for plan in planned
        ]

    def _note(self, plan: PlannedBatch, messages: Sequence[MicroBatch], fleet: Fleet, now: float) -> None:
        """Count leased jobs as outstanding; a worker that got none is not ready any more."""
        worker = fleet.find(plan.incarnation)
        if worker is None:
            return
        if not messages:
            worker.is_ready = False
        headers = {job.job_id: job for job in plan.jobs}
        for message in messages:
            number = next(self._messages)
            for job in message.jobs:
                held = self._outstanding(headers[job.job_id], job, now)
                held.message, held.batch_id = number, message.batch_id
                worker.give(job.job_id, held)

    def _outstanding(self, header: PendingJob, job: BatchJob, now: float) -> Outstanding:
        return Outstanding(
            attempt=job.attempt,
            revision=job.revision,
            tokens=min(header.prompt_tokens + self._lengths.at_most(header), self._max_model_len),
            is_suspect=header.group is not None,
            dispatched_at=now,
            patience_s=self._deliveries.patience_s(job.job_id),
        )

    def _batches(self, plan: PlannedBatch, jobs: Sequence[BatchJob]) -> Iterator[MicroBatch]:
        sizes = {header.job_id: header.request_bytes for header in plan.jobs}
        for part in _parts(jobs, sizes, self._deliveries.goes_alone, self._max_batch_jobs):
            yield MicroBatch(
                batch_id=uuid7(),
                pool=self._context.pool,
                incarnation=plan.incarnation,
                term=self._context.term,
                jobs=tuple(part),
            )

    def _publish_all(self, batches: Sequence[MicroBatch], unsent: dict[str, set[JobAttempt]]) -> None:
        """Send messages, several in one exchange with Redis: then it is unknown which of them went out.

        A message whose jobs are given back although it did go out runs nothing: workers ask the ledger first.
        """
        with self._app.producer_or_acquire() as producer:
            if len(batches) == 1:
                self._publish(batches[0], producer)
            elif batches:
                with producer.batch():
                    for batch in batches:
                        self._publish(batch, producer)
        unsent.clear()
        for batch in batches:
            logger.info(
                "micro_batch.dispatched",
                micro_batch_id=str(batch.batch_id),
                incarnation=batch.incarnation,
                jobs=len(batch.jobs),
            )

    def _publish(self, batch: MicroBatch, producer: Producer) -> None:
        body = batch.model_dump(mode="json", exclude_unset=True)
        shown = f"{len(batch.jobs)} jobs for {batch.incarnation}"
        self._send(RUN_MICRO_BATCH, batch.incarnation, body, batch.batch_id, producer, shown=shown)

    def _send(
        self, task: str, incarnation: str, argument: Any, task_id: UUID, producer: Producer, *, shown: str
    ) -> None:
        self._app.send_task(
            task,
            args=[argument],
            task_id=str(task_id),
            producer=producer,
            queue=_direct(worker_queue(incarnation)),
            # The worker declares its queue; declared here, a lost worker's would come to life again.
            declare=[],
            argsrepr=f"({shown})",
            kwargsrepr="{}",
            ignore_result=True,
        )

    def _release(self, unsent: Mapping[str, Collection[JobAttempt]], fleet: Fleet) -> None:
        """Give leases back whose message did not go out; raises what the ledger does, to be read anew."""
        logger.warning("micro_batches.not_published", jobs=sum(map(len, unsent.values())))

        def release(connection: Connection) -> None:
            for incarnation, pairs in unsent.items():
                LeaseRepository(connection).release(incarnation, sorted(pairs))

        self._context.transact(release)
        for incarnation, pairs in unsent.items():
            if (worker := fleet.find(incarnation)) is not None:
                for pair in pairs:
                    worker.take_back(pair)


def _direct(name: str) -> Queue:
    """Address a queue by its name alone, through no exchange."""
    return Queue(name, Exchange(""), routing_key=name)  # type: ignore[no-untyped-call]


def _parts(
    jobs: Sequence[BatchJob], sizes: Mapping[UUID, int], goes_alone: Callable[[UUID], bool], max_jobs: int
) -> Iterator[list[BatchJob]]:
    """Cut jobs into messages by number and by the bytes of their requests; the last ones carry one each."""
    alone = [job for job in jobs if goes_alone(job.job_id)]
    together = [job for job in jobs if not goes_alone(job.job_id)] if alone else jobs
    for start in range(0, len(together), max_jobs):
        part = together[start : start + max_jobs]
        yield from _cut(part, lambda job: sizes[job.job_id], MAX_MESSAGE_BYTES)
    yield from ([job] for job in alone)


def _rounds(planned: Sequence[PlannedBatch]) -> Iterator[list[PlannedBatch]]:
    """Cut a round into transactions by the bytes of the requests that they read."""
    apart = [
        PlannedBatch(plan.incarnation, tuple(jobs))
        for plan in planned
        for jobs in _cut(plan.jobs, lambda job: job.request_bytes, MAX_ROUND_BYTES)
    ]
    yield from _cut(apart, lambda plan: sum(job.request_bytes for job in plan.jobs), MAX_ROUND_BYTES)


def _cut(items: Sequence[T], size_of: Callable[[T], int], max_bytes: int) -> Iterator[list[T]]:
    """Cut items, in their order, into parts of so many bytes, or of one item that is larger."""
    part: list[T] = []
    total = 0
    for item in items:
        total += size_of(item)
        if part and total > max_bytes:
            yield part
            part, total = [], size_of(item)
        part.append(item)
    if part:
        yield part

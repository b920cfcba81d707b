"""Tells Redis what the ledger already knows: replies, worker events and task events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

import structlog
from redis import Redis
from redis.exceptions import RedisError

from db.records import FinishedJob
from lorayard.contract.messages import ANSWERED_FIELD, AdapterFailure, BatchJob, HeldJob
from lorayard.contract.states import JobState
from lorayard.process.service_thread import OnBroken, ServiceThread
from lorayard.server.flower_events import JobEvents
from lorayard.server.flower_notes import FlowerNotes
from lorayard.server.replies import announce, send
from lorayard.transport.outages import is_redis_outage
from workers.event_builder import WorkerEventBuilder, WorkerUpdate

MAX_UNTOLD = 10_000
TICK_S = 0.2
RETRY_S = 0.5
EVENTS_KEPT = 100_000
"""The leader trims what it has read; this bound holds while no leader reads."""

logger = structlog.get_logger(__name__)


class EventPublisher:
    """One thread with connections of its own: an outage of Redis delays news, and nothing else."""

    def __init__(
        self,
        redis: Redis,
        events_stream: str,
        builder: WorkerEventBuilder,
        flower: JobEvents,
        *,
        on_broken: OnBroken,
    ) -> None:
        self._redis = redis
        self._events_stream = events_stream
        self._builder = builder
        self._flower = flower
        self._wake = threading.Condition()
        self._untold = WorkerUpdate()
        self._notes = FlowerNotes(flower)
        self._busy = False
        self._thread = ServiceThread(
            "event-publisher", self._step, on_broken=on_broken, is_outage=is_redis_outage, wake=self._rouse
        )

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Tell what is left, for so long as that takes and Redis allows."""
        with self._wake:
            self._wake.wait_for(lambda: not self._untold and not self._notes and not self._busy, timeout_s)
        self._thread.close()

    def _rouse(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def received(self, job: BatchJob) -> None:
        """Show a job in Flower as received."""
        received = partial(self._flower.received, job.job_id, job.adapter, job.tenant)
        self._note(job.job_id, received, is_first=True)

    def started(self, job: BatchJob) -> None:
        """Show a job in Flower as started."""
        self._note(job.job_id, lambda: self._flower.started(job.job_id))

    def residency_changed(self) -> None:
        """Tell of adapters that came and went, with what else there is to tell within `TICK_S`."""
        self._rouse()

    def committed(self, finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        """Tell of ends that are in the ledger; only of those."""
        for job in finished:
            self._note(job.job_id, partial(self._show_end, job), is_last=job.state.is_terminal)
        self._tell(WorkerUpdate(list(finished), list(failures)))

    def answer(self, ping: UUID) -> None:
        """Tell that a ping has come through the worker's queue."""
        self._tell(WorkerUpdate(answered=ping))

    def heartbeat(self, held: Sequence[HeldJob]) -> None:
        """Tell what is held, with the whole of residency."""
        self._tell(WorkerUpdate(held=tuple(held)))

    def _note(
        self, job_id: UUID, show: Callable[[], None], *, is_first: bool = False, is_last: bool = False
    ) -> None:
        """Have a note shown within a tick, or with what is told; the first that waits wakes the thread."""
        with self._wake:
            if self._notes.add(job_id, show, is_first=is_first, is_last=is_last):
                self._wake.notify_all()

    def _tell(self, update: WorkerUpdate) -> None:
        with self._wake:
            self._untold.merge(update)
            if dropped := self._untold.trim(MAX_UNTOLD):
                logger.warning("event_publisher.dropped", replies=dropped)
            self._wake.notify_all()

    def _step(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._must_tell or self._notes or self._builder.status.has_news)
            self._wake.wait_for(lambda: self._must_tell, TICK_S)
            if self._thread.stopping.is_set():
                return
            update, self._untold = self._untold, WorkerUpdate()
            self._busy = True
        told = False
        try:
            told = self._publish(update)
            self._notes.show(self._thread)
        finally:
            self._put_back(None if told else update)
        if not told:
            self._thread.stopping.wait(RETRY_S)

    @property
    def _must_tell(self) -> bool:
        return bool(self._untold or self._thread.stopping.is_set())

    def _put_back(self, untold: WorkerUpdate | None) -> None:
        with self._wake:
            if untold is not None:
                untold.merge(self._untold)
                self._untold = untold
            self._busy = False
            self._wake.notify_all()

    def _publish(self, update: WorkerUpdate) -> bool:
        """Tell all of it; False while Redis does not take it."""
        try:
            try:
                self._send(update)
            except RedisError:
                raise
            except Exception as error:  # noqa: BLE001 - one end that cannot be told must not hold the others up
                logger.warning("event_publisher.told_apart", untold=len(update.finished), error=repr(error))
                self._send_apart(update)
        except RedisError as error:
            logger.warning("event_publisher.redis_unavailable", untold=len(update.finished), error=str(error))
            return False
        return True

    def _send_apart(self, update: WorkerUpdate) -> None:
        for job in update.finished:
            with self._thread.item(job_id=str(job.job_id), attempt=job.attempt):
                self._send(WorkerUpdate([job]))
        update.finished = []  # told, or untellable
        self._send(update)

    def _send(self, update: WorkerUpdate) -> None:
        events = self._builder.events(update)
        if not update.finished and not events:
            return
        pipeline = self._redis.pipeline(transaction=False)
        answered = {ANSWERED_FIELD: str(update.answered)} if update.answered else {}
        for event in events:
            entry = event.to_entry() | answered
            pipeline.xadd(self._events_stream, entry, maxlen=EVENTS_KEPT, approximate=True)
        announce(pipeline, [job for job in update.finished if job.state.is_terminal])
        send(pipeline)

    def _show_end(self, job: FinishedJob) -> None:
        result = job.result
        if job.state is JobState.SUCCEEDED:
            self._flower.succeeded(job.job_id, result.output or "", (result.run_ms or 0.0) / 1000)
        elif job.state in (JobState.CANCELLED, JobState.EXPIRED):
            self._flower.revoked(job.job_id, expired=job.state is JobState.EXPIRED)
        elif job.state.is_terminal:
            self._flower.failed(job.job_id, str(result.error))

"""Tells Redis what the ledger already knows: replies, worker events and task events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from redis import Redis
from redis.exceptions import RedisError

from db.records import FinishedJob
from lorayard.contract.messages import AdapterFailure, BatchJob, HeldJob, WorkerEvent
from lorayard.contract.states import JobState
from lorayard.server.flower_events import JobEvents
from lorayard.server.replies import announce
from workers.bulletin import Bulletin, Reporter

MAX_UNTOLD = 10_000
TICK_S = 0.2
RETRY_S = 0.5
EVENTS_KEPT = 100_000
"""The leader trims what it has read; this bound holds while no leader reads."""

logger = structlog.get_logger(__name__)


class Announcer:
    """One thread with connections of its own: an outage of Redis delays news, and nothing else."""

    def __init__(self, redis: Redis, events_stream: str, reporter: Reporter, flower: JobEvents) -> None:
        self._redis = redis
        self._events_stream = events_stream
        self._reporter = reporter
        self._flower = flower
        self._wake = threading.Condition()
        self._untold = Bulletin()
        self._notes: deque[Callable[[], None]] = deque(maxlen=MAX_UNTOLD)
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Tell what is left, for so long as that takes and Redis allows."""
        with self._wake:
            self._wake.wait_for(lambda: not self._untold and not self._notes and not self._busy, timeout_s)
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout=5.0)

    def received(self, job: BatchJob) -> None:
        """Show a job in Flower as received."""
        self._note(lambda: self._flower.received(job.job_id, job.adapter, job.tenant))

    def started(self, job: BatchJob) -> None:
        """Show a job in Flower as started."""
        self._note(lambda: self._flower.started(job.job_id))

    def committed(self, finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        """Tell of ends that are in the ledger; only of those."""
        for job in finished:
            self._note(partial(self._show_end, job))
        self._tell(Bulletin(list(finished), list(failures)))

    def heartbeat(self, held: Sequence[HeldJob]) -> None:
        """Tell what is held, with the whole of residency."""
        self._tell(Bulletin(held=tuple(held)))

    def _note(self, note: Callable[[], None]) -> None:
        with self._wake:
            self._notes.append(note)
            self._wake.notify_all()

    def _tell(self, bulletin: Bulletin) -> None:
        with self._wake:
            self._untold.merge(bulletin)
            if dropped := self._untold.trim(MAX_UNTOLD):
                logger.warning("announcer.dropped", replies=dropped)
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._untold or self._notes or self._closed, TICK_S)
                if self._closed:
                    return
                bulletin, self._untold = self._untold, Bulletin()
                notes, self._notes = self._notes, deque(maxlen=MAX_UNTOLD)
                self._busy = True
            told = self._publish(bulletin)
            self._show(notes)
            with self._wake:
                if not told:
                    bulletin.merge(self._untold)
                    self._untold = bulletin
                self._busy = False
                self._wake.notify_all()
                if not told:
                    self._wake.wait_for(lambda: self._closed, RETRY_S)

    def _publish(self, bulletin: Bulletin) -> bool:
        events = self._reporter.events(bulletin)
        if not bulletin.finished and not events:
            return True
        try:
            self._send(bulletin.finished, events)
        except RedisError as error:
            logger.warning("announcer.redis_unavailable", untold=len(bulletin.finished), error=str(error))
            return False
        return True

    def _send(self, finished: Sequence[FinishedJob], events: Sequence[WorkerEvent]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for event in events:
            pipeline.xadd(self._events_stream, event.to_entry(), maxlen=EVENTS_KEPT, approximate=True)
        announce(pipeline, [job for job in finished if job.state.is_terminal])
        pipeline.execute()

    def _show(self, notes: deque[Callable[[], None]]) -> None:
        for note in notes:
            note()
        if notes:
            self._flower.flush()

    def _show_end(self, job: FinishedJob) -> None:
        result = job.result
        if job.state is JobState.SUCCEEDED:
            self._flower.succeeded(job.job_id, result.output or "", (result.run_ms or 0.0) / 1000)
        elif job.state in (JobState.CANCELLED, JobState.EXPIRED):
            self._flower.revoked(job.job_id, expired=job.state is JobState.EXPIRED)
        elif job.state.is_terminal:
            self._flower.failed(job.job_id, str(result.error))

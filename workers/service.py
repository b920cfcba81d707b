"""One incarnation from its first lease to its end: serving, draining, or giving up to start anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import structlog

from db.records import WorkerEnd as LedgerEnd
from lorayard.contract.messages import HeldJob
from lorayard.process.service_thread import ServiceThread
from lorayard.process.stop_request import StopRequest
from workers.attempts import AttemptTable
from workers.celery_worker import CeleryWorker
from workers.commands import CommandReader
from workers.committer import Committer
from workers.engine_host import EngineHost
from workers.event_builder import WorkerEventBuilder
from workers.event_publisher import EventPublisher
from workers.lease import LeaseKeeper
from workers.registration import Registration
from workers.token_writer import TokenWriter

LOOK_EVERY_S = 0.02
STOP_LOOK_S = 1.0
ABORTS_S = 5.0
"""An engine in the middle of a long step hears of aborts after it."""

logger = structlog.get_logger(__name__)


class WorkerEnd(Enum):
    """Why an incarnation ended."""

    DRAINED = "drained"
    LEASE_LOST = "lease lost"
    REFUSED = "its pool does not take it"
    ENGINE_DIED = "engine died"
    ENGINE_HUNG = "engine hung"
    DEVICE_LOST = "device lost"
    CELERY_FAILED = "celery failed"
    BROKEN = "a service thread gave up"


@dataclass(frozen=True, slots=True)
class Parts:
    """What an incarnation is made of."""

    attempts: AttemptTable
    host: EngineHost
    committer: Committer
    builder: WorkerEventBuilder
    publisher: EventPublisher
    tokens: TokenWriter
    registration: Registration
    lease: LeaseKeeper
    commands: CommandReader
    celery: CeleryWorker


class WorkerService:
    """Mutable: knows whether it drains and why it ended; the first reason counts.

    It drains when it is told to (`stop`), and when one of its threads gives up: then what runs is given back
    at once, because nobody knows what this process can still do for it.
    """

    def __init__(
        self,
        stop: StopRequest,
        *,
        ready_file: Path | None,
        drain_grace_s: float,
        flush_s: float,
        build: Callable[[WorkerService], Parts],
    ) -> None:
        self._ready_file = ready_file
        self._drain_grace_s = drain_grace_s
        self._flush_s = flush_s
        self._stop = stop
        self._is_broken = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._ending: WorkerEnd | None = None
        self.reason = ""
        """What was said of why it ended, once it has."""
        self._drainer = ServiceThread("drain", self._drain_if_asked, on_broken=self.give_up)
        self._parts = build(self)

    def run(self) -> WorkerEnd:
        """Serve until drained, or until this incarnation cannot go on; then tidy up."""
        parts = self._parts
        parts.host.start()
        parts.committer.start()
        parts.publisher.start()
        parts.tokens.start()
        parts.commands.start()
        self._drainer.start()
        parts.celery.run()
        if parts.celery.was_shut_down and not self._stopping.is_set():
            # By Celery's control, as Flower's "Shut down" does: what runs may end.
            self.drain()
            self._stopping.wait()
        self.end(WorkerEnd.CELERY_FAILED)
        assert self._ending is not None, "an ending was just set"
        self._tidy_up(self._ending)
        return self._ending

    def drain(self) -> None:
        """Leave in good order; once more does nothing."""
        self._stop.set()

    def give_up(self, thread: str) -> None:
        """Drain because a thread of this process is beyond help; the process then ends loudly."""
        self._is_broken = True
        self._stop.set()
        if thread == self._drainer.name:
            self.end(WorkerEnd.BROKEN)

    def end(self, ending: WorkerEnd, reason: str = "") -> None:
        """Stop consuming, for this reason unless there was one before."""
        with self._lock:
            if self._ending is None:
                self._ending, self.reason = ending, reason
                logger.log(_LEVELS[ending], "worker.ending", reason=ending.value)
        self._stopping.set()
        self._parts.celery.stop()

    def on_registered(self) -> None:
        """The worker can be given jobs: say so."""
        logger.info("worker.ready")
        if self._ready_file is not None:
            self._ready_file.touch()

    def on_heartbeat(self, held: Sequence[HeldJob]) -> None:
        """Tell the leader what is held."""
        self._parts.publisher.heartbeat(held)

    def _drain_if_asked(self) -> None:
        if self._stop.wait(STOP_LOOK_S):
            self._drain()
            self._drainer.stop()

    def _drain(self) -> None:
        """Each part of it may be done twice: a drain that failed begins anew."""
        parts = self._parts
        logger.info("worker.draining", held=len(parts.attempts))
        parts.builder.draining = True
        parts.host.refuse()
        parts.registration.say_draining()
        parts.publisher.heartbeat(parts.attempts.report())
        parts.host.release_waiting()
        self._await(lambda: self._is_broken or not parts.attempts.live(), self._drain_grace_s)
        parts.host.release_all()
        self._await(lambda: not parts.attempts.live(), ABORTS_S)
        # What the engine has not let go of by now is given back by the last renewal.
        self._await(lambda: len(parts.attempts) <= len(parts.attempts.live()), self._flush_s)
        self.end(WorkerEnd.BROKEN if self._is_broken else WorkerEnd.DRAINED)

    def _await(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            if self._stopping.wait(LOOK_EVERY_S):
                return

    def _tidy_up(self, ending: WorkerEnd) -> None:
        parts = self._parts
        parts.lease.close()
        if ending is WorkerEnd.LEASE_LOST:
            # All that is held belongs to others by now: nothing more may be said of it.
            parts.host.close()
        else:
            parts.committer.flush(self._flush_s)
            end = _LAST_WORDS[ending]
            parts.registration.leave(
                end,
                parts.attempts.report(),
                succeeded=parts.attempts.num_succeeded,
                in_step=parts.host.in_step() if end in ("engine_died", "engine_hung") else (),
            )
        parts.committer.close()
        parts.tokens.close(timeout_s=2.0)
        parts.publisher.heartbeat(())
        parts.publisher.close(timeout_s=2.0)
        parts.commands.close()
        parts.host.close()
        parts.celery.delete_queue()
        logger.info("worker.gone", reason=ending.value, forgotten=len(parts.attempts))


_LAST_WORDS: dict[WorkerEnd, LedgerEnd] = {
    WorkerEnd.DRAINED: "drained",
    WorkerEnd.REFUSED: "drained",
    WorkerEnd.ENGINE_DIED: "engine_died",
    WorkerEnd.ENGINE_HUNG: "engine_hung",
    WorkerEnd.DEVICE_LOST: "device_lost",
    WorkerEnd.CELERY_FAILED: "consumer_failed",
    WorkerEnd.BROKEN: "broken",
}
"""What the ledger is told; a lost lease leaves nothing to say."""

_LEVELS = {
    WorkerEnd.DRAINED: 20,
    WorkerEnd.LEASE_LOST: 40,
    WorkerEnd.REFUSED: 40,
    WorkerEnd.ENGINE_DIED: 40,
    WorkerEnd.ENGINE_HUNG: 40,
    WorkerEnd.DEVICE_LOST: 40,
    WorkerEnd.CELERY_FAILED: 40,
    WorkerEnd.BROKEN: 50,
}

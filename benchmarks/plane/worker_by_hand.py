"""What a worker has between its queue and the ledger, each step of it done by hand, for `stages`."""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from benchmarks.plane.instant_engine import KV_BLOCKS, InstantEngine
from benchmarks.plane.lorayard_jobs import POOL
from benchmarks.plane.stack import Machine
from db.database import MAX_HOLD_MS, Database
from db.records import WorkerLimits
from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import PoolKeys
from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from lorayard.transport.connections import for_service
from workers.attempts import AttemptTable
from workers.celery_worker import CeleryWorker
from workers.committer import Committer
from workers.engine.serving.messages import Command, EngineEvents
from workers.engine_host import EngineHost
from workers.engine_status import Capacity, EngineStatus
from workers.engine_watch import ProgressLimit
from workers.event_builder import WorkerEventBuilder
from workers.event_publisher import EventPublisher
from workers.ledger_health import LedgerHealth
from workers.requests import AdapterIds
from workers.result_ledger import PostgresLedger
from workers.spill import Spill
from workers.tasks import define_tasks

INCARNATION: Final = "stages"
MAX_SEQS: Final = 256
LEASE_S: Final = 86_400.0


class LoopedEngine:
    """An instant engine in this process, with the pickling of the pipe to one in another."""

    def __init__(self) -> None:
        self._engine = InstantEngine(MAX_SEQS)
        self._events: deque[bytes] = deque()

    @property
    def has_events(self) -> bool:
        """Whether something is there to be received."""
        return bool(self._events)

    def send(self, *commands: Command) -> None:
        """Take commands and answer them."""
        received = pickle.loads(pickle.dumps(commands, -1))
        self._events.append(pickle.dumps(self._engine.step(list(received)), -1))

    def receive(self, _timeout_s: float | None) -> EngineEvents:
        """Return the next answer."""
        events: EngineEvents = pickle.loads(self._events.popleft())
        return events

    def interrupt(self) -> None:
        """Nothing waits."""


class WorkerParts:
    """What a worker has between its queue and the ledger, each step of it done by hand."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        database = Database(machine.database_url, pool_size=2, lock_timeout_ms=MAX_HOLD_MS)
        limits = WorkerLimits(MAX_SEQS, KV_BLOCKS, 16, 2048, 8, 64)
        database.run(lambda c: WorkerRepository(c).register(INCARNATION, POOL, "host", limits, LEASE_S))
        status = EngineStatus(Capacity(MAX_SEQS, KV_BLOCKS))
        app = make_app(machine.redis_url)
        self.engine = LoopedEngine()
        self.attempts = AttemptTable(lambda _task_id: self.celery.wake())
        self.publisher = EventPublisher(
            for_service(machine.redis_url),
            PoolKeys(POOL).worker_events,
            WorkerEventBuilder(INCARNATION, status),
            JobEvents(app, f"{INCARNATION}@host", clock=time.process_time),
            on_broken=broken,
        )
        self.committer = Committer(
            PostgresLedger(database, INCARNATION),
            self.attempts,
            self.publisher.committed,
            health=LedgerHealth(),
            spill=Spill(folder / "spill", INCARNATION),
            max_uncommitted=10_000,
            on_broken=broken,
        )
        engine: Any = self.engine
        self.host = EngineHost(
            engine,
            self.attempts,
            self.committer,
            self.publisher,
            AdapterIds(folder),
            status,
            is_revoked=lambda _task_id: False,
            on_died=lambda error: broken(str(error)),
            on_broken=broken,
            on_text=lambda _piece: None,
            limit=ProgressLimit(start_s=LEASE_S),
            ask_aborts=lambda held: database.run(lambda c: WorkerRepository(c).aborts(INCARNATION, held)),
        )
        define_tasks(app, self.host, pool=POOL, incarnation=INCARNATION, answer=self.publisher.answer)
        self.celery = CeleryWorker(
            app, INCARNATION, f"{INCARNATION}@host", self.host, max_num_seqs=MAX_SEQS, on_ready=lambda: None
        )
        threading.Thread(target=self.celery.run, name="celery", daemon=True).start()

    def serve(self, timed: Callable[[str], AbstractContextManager[None]]) -> None:
        """Bring what was joined to its end, each stage of it inside `timed`."""
        host, committer = self.host, self.committer
        while host._arrivals._waiting:
            with timed("worker: ask whether leased"):
                host._arrivals._step()
        while host._feeder._requests:
            with timed("worker: feed, and the engine"):
                host._feeder._step()
        while self.engine.has_events:
            with timed("worker: hear the engine"):
                host._pump_once()
        while committer._queue.num_kept:
            with timed("worker: commit"):
                committer._step()
            with timed("worker: tell and show"):
                self.publisher._step()


def broken(what: str) -> None:
    """End the run: nobody drains here."""
    raise RuntimeError(f"{what} has given up: see the log")

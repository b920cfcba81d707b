"""A worker without an engine: it consumes its queue, ends jobs as the test says, and tells the leader."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer
from redis import Redis

from db.database import Database
from db.records import EndedAttempt, JobAttempt, WorkerLimits
from db.repositories.finish import FinishRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import PoolKeys, worker_queue
from lorayard.contract.messages import (
    ANSWERED_FIELD,
    AdapterFailure,
    BatchJob,
    Command,
    EndedJob,
    HeldJob,
    MicroBatch,
    Residency,
    WorkerEvent,
)
from lorayard.contract.states import JobState
from lorayard.contract.tasks import PING, RUN_MICRO_BATCH
from lorayard.server.replies import announce, send

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=4096, block_size=16, max_model_len=1024, max_loras=4, max_lora_rank=16
)
Script = Callable[[BatchJob], EndedAttempt | None]


def succeed(job: BatchJob) -> EndedAttempt | None:
    """End a job well."""
    return EndedAttempt(
        job.job_id,
        job.attempt,
        JobState.SUCCEEDED,
        output=job.request["prompt"].upper(),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=5,
        queue_ms=job.queue_ms,
        run_ms=1.0,
        device_ms=1.0,
        revision=job.revision,
    )


def hold(job: BatchJob) -> EndedAttempt | None:
    """Keep a job running."""
    return None


class Place(Protocol):
    """What a worker finds around it: a `PoolRig`, or a scripted leader."""

    redis_url: str
    database: Database
    pool: str
    keys: PoolKeys


class ScriptedWorker:
    """One start of a worker, on threads of the test's process."""

    def __init__(
        self,
        rig: Place,
        script: Script = succeed,
        *,
        limits: WorkerLimits = LIMITS,
        lease_s: float = 60.0,
        beat_every_s: float = 0.2,
        listens: bool = True,
        obeys: bool = True,
        redis_url: str | None = None,
        broker_url: str | None = None,
        unreadable: str | None = None,
        store: str | None = None,
    ) -> None:
        """`unreadable`: the prompt of a job that this worker cannot read, and so never lists."""
        self._yard = rig
        self._redis_url = redis_url or rig.redis_url
        self._broker_url = broker_url or self._redis_url
        self._unreadable = unreadable
        self.script = script
        self.incarnation = uuid4().hex
        self._limits = limits
        self._lease_s = lease_s
        self._beat_every_s = beat_every_s
        self._listens, self._obeys = listens, obeys
        self._store = store
        self._redis = Redis.from_url(self._redis_url, protocol=2, socket_timeout=None)
        self._stopping = threading.Event()
        self._seq = itertools.count()
        self._lock = threading.Lock()
        self._last_command: bytes | str = "-"
        self.held: dict[Any, BatchJob] = {}
        self.is_draining = False
        self.num_succeeded = 0
        self.batches: list[MicroBatch] = []
        self.all_batches: list[MicroBatch] = []
        """With the jobs that could not be read."""
        self._threads = [threading.Thread(target=self._beat, name="beat")]
        if listens:
            self._threads.append(threading.Thread(target=self._consume, name="consume"))

    @property
    def jobs(self) -> list[BatchJob]:
        """All attempts that have come here."""
        return [job for batch in self.batches for job in batch.jobs]

    def __enter__(self) -> Self:
        self._yard.database.run(
            lambda c: WorkerRepository(c).register(
                self.incarnation, self._yard.pool, "scripted", self._limits, self._lease_s, store=self._store
            )
        )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """Fall silent, as a killed process does."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._redis.close()

    def lose_engine(self) -> None:
        """Leave as a worker does whose engine died in a step of all that it holds."""
        self.die()
        step = [JobAttempt(job.job_id, job.attempt) for job in self.held.values()]
        running = [HeldJob(job_id=pair.job_id, attempt=pair.attempt, running=True) for pair in step]

        def leave(connection: Any) -> None:
            workers = WorkerRepository(connection)
            workers.report(self.incarnation, running, self.num_succeeded)
            workers.say_end(self.incarnation, "engine_died", step)
            workers.set_state(self.incarnation, "gone")

        self._yard.database.run(leave)

    def end(self, ended: Sequence[EndedAttempt]) -> None:
        """Commit ends, then tell the leader and the clients."""
        finished = self._yard.database.run(
            lambda c: FinishRepository(c).finish(self.incarnation, next(self._seq), ended)
        )
        self.num_succeeded += sum(one.state is JobState.SUCCEEDED for one in finished)
        with self._lock:
            for one in ended:
                self.held.pop(one.job_id, None)
        pipeline = self._redis.pipeline(transaction=False)
        self._tell(
            pipeline,
            ended=tuple(EndedJob(job_id=f.job_id, attempt=f.attempt, state=f.state) for f in finished),
        )
        announce(pipeline, [job for job in finished if job.state.is_terminal])
        send(pipeline)

    def commands(self, kind: str) -> list[Command]:
        """Read what the leader has asked of this worker."""
        entries: Any = self._redis.xrange(self._yard.keys.commands(self.incarnation))
        found = [Command.from_entry(fields) for _, fields in entries]
        return [command for command in found if command.kind == kind]

    def run_out(self) -> None:
        """Let the lease end now; for a worker that has died, which renews it no more."""
        assert self._stopping.is_set()
        assert self._yard.database.run(lambda c: WorkerRepository(c).renew(self.incarnation, 0.0))

    def report(self, *failures: AdapterFailure, residency: Sequence[Residency] = (), epoch: int = 0) -> None:
        """Tell of loads."""
        self._tell(self._redis, failures=failures, residency=tuple(residency), residency_epoch=epoch)

    def _tell(self, redis: Any, *, answered: str | None = None, **fields: Any) -> None:
        event = WorkerEvent(incarnation=self.incarnation, free_seqs=1, free_kv_blocks=1, **fields)
        beside = {ANSWERED_FIELD: answered} if answered else {}
        redis.xadd(self._yard.keys.worker_events, event.to_entry() | beside)

    def _beat(self) -> None:
        while not self._stopping.wait(self._beat_every_s):
            with self._lock:
                held = [
                    HeldJob(job_id=job.job_id, attempt=job.attempt, running=place < self._limits.max_num_seqs)
                    for place, job in enumerate(self.held.values())
                ]
            with self._yard.database.transaction() as transaction:
                WorkerRepository(transaction).renew(self.incarnation, self._lease_s)
            with self._yard.database.transaction() as transaction:
                WorkerRepository(transaction).report(self.incarnation, held)
            self._tell(self._redis, held=tuple(held), draining=self.is_draining)
            if self._obeys:
                self._obey()

    def _obey(self) -> None:
        """End held jobs that are to be cancelled or given back, and say that it drains if it is to.

        What is about adapters asks nothing of a worker without an engine.
        """
        entries: Any = self._redis.xrange(self._yard.keys.commands(self.incarnation), min=self._last_command)
        for entry_id, fields in entries:
            self._last_command = b"(" + entry_id
            command = Command.from_entry(fields)
            with self._lock:
                held = [self.held[job_id] for job_id in command.job_ids if job_id in self.held]
            states = {"cancel": JobState.CANCELLED, "recall": JobState.QUEUED}
            if held and command.kind in states:
                self.end([EndedAttempt(job.job_id, job.attempt, states[command.kind]) for job in held])
            self.is_draining |= command.kind == "drain"

    def _consume(self) -> None:
        with Connection(self._broker_url) as connection:
            queue = Queue(worker_queue(self.incarnation))
            options = {"callbacks": [self._receive], "accept": ["json"], "no_ack": True}
            consumer = Consumer(connection, [queue], **options)
            with consumer:
                while not self._stopping.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def _receive(self, body: Any, message: Any) -> None:
        if message.headers["task"] == PING:
            self._tell(self._redis, answered=body[0][0])
            return
        assert message.headers["task"] == RUN_MICRO_BATCH
        batch = MicroBatch.model_validate(body[0][0])
        self.all_batches.append(batch)
        readable = tuple(job for job in batch.jobs if job.request["prompt"] != self._unreadable)
        batch = batch.model_copy(update={"jobs": readable})
        with self._lock:
            self.batches.append(batch)
            self.held.update((job.job_id, job) for job in batch.jobs)
        ended = [end for job in batch.jobs if (end := self.script(job)) is not None]
        if ended:
            self.end(ended)

"""The floor: our SQL through bare psycopg, our Redis commands and Celery's own messages, and nothing between.

`python -m benchmarks.plane.floor leader` is a loop that admits and leases; the worker is Celery's own, whose
task hands over to one thread that checks and commits what has come. There are no policies, leases, fences,
retries, checks of what is read or logs. Statements are the repositories', parameters are built by hand.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from celery import Celery
from psycopg.rows import namedtuple_row
from redis import Redis
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql.psycopg import dialect

from benchmarks.plane.lorayard_jobs import POOL, RESULT_TIMEOUT_S, jobs
from benchmarks.plane.stack import Machine
from db import Database
from db.records import WorkerLimits
from db.repositories import admission, backlog, endings, finish, leases, terms, workers
from lorayard.client.guard import IntakeEntry, SubmitGuard
from lorayard.contract.keys import INTAKE_GROUP, PoolKeys, reply_key, worker_queue
from lorayard.local import plain_url
from lorayard.server.celery_app import make_app
from scheduler.dispatch import _direct

WORKER: Final = "floor"
CLIENT: Final = "floor-client"
KEYS: Final = PoolKeys(POOL)
BLOCK_JOBS: Final = 500
WINDOW_JOBS: Final = 2000
ROUND_JOBS: Final = 128
MAX_OUTSTANDING: Final = 1024
MAX_GROUP: Final = 256
TASK: Final = "floor.run"
EVENTS: Final = "/0.celeryev/task.multi"
EVENT: Final = json.dumps({"type": "task-started", "uuid": str(uuid4()), "hostname": "x" * 20, "pid": 1})


def sql(statement: TextClause) -> str:
    """Render a repository's statement as psycopg takes it."""
    return str(statement.compile(dialect=dialect()))  # type: ignore[no-untyped-call]


def connect() -> psycopg.Connection[Any]:
    """Connect as every part of the floor does."""
    url = plain_url(os.environ["LORAYARD_DATABASE_URL"])
    return psycopg.connect(url, row_factory=namedtuple_row, prepare_threshold=None)


def columns(**lists: list[Any]) -> dict[str, list[Any]]:
    """Name the arrays that a statement unnests."""
    return lists


class Leader:
    """Admits blocks and sends micro-batches of `batch` jobs."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._connection = connect()
        self._redis = Redis.from_url(os.environ["LORAYARD_REDIS_URL"], protocol=2)
        self._app = make_app(os.environ["LORAYARD_REDIS_URL"])
        self._app.conf.task_send_sent_event = False
        self._queue = _direct(worker_queue(WORKER))
        self._term = {"pool": POOL, "term": 1, "name": WORKER}
        self._waiting: list[UUID] = []
        self._num_outstanding = 0
        self._cursor = 0
        for stream in (*KEYS.all_jobs, KEYS.worker_events):
            self._redis.xgroup_create(stream, INTAKE_GROUP, "0", mkstream=True)

    def run(self) -> None:
        """Serve until ended."""
        streams: dict[Any, Any] = dict.fromkeys((*KEYS.all_jobs, KEYS.worker_events), ">")
        while True:
            busy = self._waiting and self._num_outstanding < MAX_OUTSTANDING
            read: Any = self._redis.xreadgroup(
                INTAKE_GROUP, WORKER, streams, count=BLOCK_JOBS, block=None if busy else 20
            )
            for stream, entries in read or ():
                if stream.decode() == KEYS.worker_events:
                    ended = sum(len(json.loads(fields[b"body"])["ended"]) for _, fields in entries)
                    self._num_outstanding -= ended
                else:
                    self._admit([json.loads(fields[b"body"]) for _, fields in entries])
                pipeline = self._redis.pipeline(transaction=False)
                ids = [entry_id for entry_id, _ in entries]
                pipeline.xack(stream, INTAKE_GROUP, *ids)
                pipeline.xdel(stream, *ids)
                pipeline.execute()
            if self._waiting and self._num_outstanding < MAX_OUTSTANDING:
                self._dispatch()

    def _admit(self, envelopes: list[dict[str, Any]]) -> None:
        ids = [UUID(one["job_id"]) for one in envelopes]
        specs = [one["spec"] for one in envelopes]
        number = len(ids)
        with self._connection.transaction():
            self._connection.execute(sql(terms._CHECK), self._term)
            self._connection.execute(sql(admission._TAKEN), {"ids": ids})
            self._connection.execute(
                sql(admission._JOBS),
                columns(
                    job_id=ids,
                    tenant=[spec["tenant"] for spec in specs],
                    adapter=[spec["adapter"] for spec in specs],
                    revision=[f"sha256:{0:064x}"] * number,
                    priority=[1] * number,
                    reply_to=[CLIENT] * number,
                    has_callback=[False] * number,
                    est_prompt_tokens=[20] * number,
                    max_tokens=[1] * number,
                    request_bytes=[80] * number,
                    stream=[False] * number,
                    waited_s=[0.0] * number,
                    deadline_s=[None] * number,
                    error_code=[None] * number,
                )
                | {"pool": POOL},
            )
            self._connection.execute(
                sql(admission._INPUTS),
                columns(
                    job_id=ids,
                    request=[json.dumps({"prompt": spec["prompt"], "max_tokens": 1}) for spec in specs],
                    metadata=["{}"] * number,
                    callback_url=[None] * number,
                    callback_host=[None] * number,
                    submission_id=ids,
                ),
            )
        window = {"pool": POOL, "cursor": self._cursor, "limit": WINDOW_JOBS}
        with self._connection.transaction():
            rows = self._connection.execute(sql(backlog._QUEUED_AFTER), window).fetchall()
        if rows:
            self._cursor = rows[-1].admit_seq
        self._waiting += [row.job_id for row in rows]
        self._publish_events(number)

    def _dispatch(self) -> None:
        ids, self._waiting = self._waiting[:ROUND_JOBS], self._waiting[ROUND_JOBS:]
        worker = {"incarnation": WORKER, "pool": POOL}
        with self._connection.transaction():
            self._connection.execute(sql(terms._CHECK), self._term)
            self._connection.execute(sql(leases._WORKER_IS_READY), worker)
            leased = self._connection.execute(sql(leases._LEASE), worker | {"ids": ids}).fetchall()
        self._num_outstanding += len(leased)
        with self._app.producer_or_acquire() as producer:
            for start in range(0, len(leased), self._batch):
                self._app.send_task(
                    TASK,
                    args=[[_message(row) for row in leased[start : start + self._batch]]],
                    producer=producer,
                    queue=self._queue,
                    declare=[],
                    ignore_result=True,
                )

    def _publish_events(self, number: int) -> None:
        self._redis.publish(EVENTS, f"[{','.join([EVENT] * number)}]")


def _message(row: Any) -> dict[str, Any]:
    return {**row._asdict(), "job_id": str(row.job_id)}


class Worker:
    """Takes what Celery's worker was sent, and commits it in groups."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
        self._seq = 0
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, batch: list[dict[str, Any]]) -> None:
        """Take one micro-batch."""
        self._waiting.put(batch)

    def _run(self) -> None:
        connection = connect()
        redis = Redis.from_url(os.environ["LORAYARD_REDIS_URL"], protocol=2)
        while True:
            group = self._waiting.get()
            while len(group) < MAX_GROUP and not self._waiting.empty():
                group = group + self._waiting.get()
            self._commit(connection, group)
            self._tell(redis, group)

    def _commit(self, connection: psycopg.Connection[Any], group: list[dict[str, Any]]) -> None:
        ids, attempts = [UUID(job["job_id"]) for job in group], [job["attempt"] for job in group]
        number = len(group)
        self._seq += 1
        own: dict[str, Any] = {"incarnation": WORKER, "seq": self._seq, "pool": POOL}
        with connection.transaction():
            connection.execute(sql(workers._HELD), own | {"ids": ids, "attempts": attempts})
        with connection.transaction():
            connection.execute(sql(finish._OPEN_GROUP), own)
            connection.execute(sql(endings._LOCK), {"ids": sorted(ids)})
            connection.execute(
                sql(finish._FINISH),
                own
                | columns(
                    job_id=ids,
                    attempt=attempts,
                    state=["succeeded"] * number,
                    output=["text"] * number,
                    finish_reason=["length"] * number,
                    sampling=['{"temperature": 0.0}'] * number,
                    prompt_tokens=[1] * number,
                    completion_tokens=[1] * number,
                    queue_ms=[1.0] * number,
                    run_ms=[1.0] * number,
                    device_ms=[0.1] * number,
                    error_code=[None] * number,
                    error_message=[None] * number,
                    revision=[job["revision"] for job in group],
                    loads=[0] * number,
                    load_ms=[0.0] * number,
                    hits=[0] * number,
                    evictions=[0] * number,
                ),
            ).fetchall()

    def _tell(self, redis: Redis, group: list[dict[str, Any]]) -> None:
        pipeline = redis.pipeline(transaction=False)
        ended = [{"job_id": job["job_id"], "attempt": job["attempt"], "state": "succeeded"} for job in group]
        pipeline.xadd(KEYS.worker_events, {"body": json.dumps({"ended": ended})}, maxlen=100_000)
        for job in group:
            reply = {"job_id": job["job_id"], "state": "succeeded", "result": {"output": "text"}}
            pipeline.xadd(reply_key(CLIENT), {"body": json.dumps(reply)})
        pipeline.publish(EVENTS, f"[{','.join([EVENT] * (3 * len(group)))}]")
        pipeline.execute()


def make_worker_app() -> Celery:
    """Make the application of the floor's worker; its thread starts with its first task."""
    floor_app = make_app(os.environ["LORAYARD_REDIS_URL"])
    started: list[Worker] = []

    @floor_app.task(name=TASK, shared=False, ignore_result=True, acks_late=False)  # type: ignore[untyped-decorator]
    def run_batch(batch: list[dict[str, Any]]) -> None:
        if not started:
            started.append(Worker())
        started[0].take(batch)

    return floor_app


def start(machine: Machine, batch: int) -> None:
    """Start leader and worker on a ledger that has no other."""
    database = Database(machine.database_url)
    limits = WorkerLimits(64, 1000, 16, 2048, 8, 64)
    database.run(lambda c: terms.TermRepository(c).take(POOL, WORKER, 86_400.0))
    database.run(lambda c: workers.WorkerRepository(c).register(WORKER, POOL, "host", limits, 86_400.0))
    database.dispose()
    machine.spawn("leader", "benchmarks.plane.floor", "leader", str(batch), ready=False)
    machine.spawn(
        "worker", "celery", "-A", "benchmarks.plane.floor_app", "worker", "-Q", worker_queue(WORKER), "-E",
        "--pool", "solo", "--loglevel", "ERROR", "--without-gossip", "--without-mingle", ready=False,
    )  # fmt: skip


def run(machine: Machine, number: int) -> float:
    """Append prepared jobs and wait until as many replies are there; returns the seconds it took."""
    redis = Redis.from_url(machine.redis_url, protocol=2)
    redis.delete(reply_key(CLIENT))
    guard = SubmitGuard(redis)
    described = [
        {"job_id": str(uuid4()), "submission_id": str(uuid4()), "payload_sha256": "", "spec": job}
        for job in jobs(number)
    ]
    entries = [IntakeEntry("normal", json.dumps(one).encode()) for one in described]
    started = time.perf_counter()
    for first in range(0, number, ROUND_JOBS):
        guard.append(KEYS, entries[first : first + ROUND_JOBS])
    heard, cursor = 0, b"0-0"
    while heard < number:
        if time.perf_counter() - started > RESULT_TIMEOUT_S:
            raise TimeoutError(f"{heard} of {number} jobs came back from the floor")
        read: Any = redis.xread({reply_key(CLIENT): cursor}, count=1000, block=250)
        for _, found in read or ():
            heard, cursor = heard + len(found), found[-1][0]
    seconds = time.perf_counter() - started
    redis.close()
    return seconds


if __name__ == "__main__":
    Leader(int(sys.argv[2])).run()

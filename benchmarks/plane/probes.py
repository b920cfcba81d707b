"""Single questions: how fast one producer submits, how long an idle queue takes, what waiting costs."""

from __future__ import annotations

import json
import statistics
import time
from base64 import b64decode
from typing import Any, Final, NamedTuple
from uuid import uuid4

import psutil
from redis import Redis
from sqlalchemy import text

from benchmarks.plane.lorayard_jobs import BLOCK_JOBS, POOL, RESULT_TIMEOUT_S, jobs, run, serving
from benchmarks.plane.stack import Machine
from db import Database
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from lorayard import Client
from lorayard.contract.keys import PoolKeys
from scheduler.policies import Backlog, PendingJob, PolicyConfig

PAUSE_S: Final = 0.05
"""Between two jobs of an idle queue."""

LOOK_S: Final = 0.02
EVENTS_WITHIN_S: Final = 1.0
"""After the last result, all events have been sent."""

EVENT_CHANNELS: Final = "*celeryev/*"
SLOW_US: Final = 500

_FILL_ADAPTERS = text("""
    WITH made AS (
        INSERT INTO adapter_revisions (pool, digest, rank, targets, bytes)
        SELECT :pool, 'sha256:' || lpad(to_hex(n + 1000000), 64, '0'), 8, '{q_proj}', 1000
        FROM generate_series(1, :number) AS n
        RETURNING digest
    )
    INSERT INTO adapters (pool, name, current_revision, state)
    SELECT :pool, 'more-' || right(digest, 12), digest, 'active' FROM made
""")


_FILL_JOBS = text("""
    WITH made AS (
        INSERT INTO jobs (job_id, pool, tenant, adapter, revision, priority, state, has_callback,
            est_prompt_tokens, max_tokens, request_bytes, submitted_at)
        SELECT gen_random_uuid(), :pool, 'default', 'adapter-' || n % 8,
            'sha256:' || lpad(to_hex(n % 8), 64, '0'), 1, 'queued', false, 20, 1, 80, now()
        FROM generate_series(1, :number) AS n
        RETURNING job_id
    )
    INSERT INTO job_inputs (job_id, request, metadata, submission_id)
    SELECT job_id, '{"prompt": "Write a haiku about numbers and their friends.", "max_tokens": 1}', '{}',
        job_id
    FROM made
""")

_ENDED = text("SELECT coalesce(sum(jobs), 0) FROM usage_deltas")


class Latency(NamedTuple):
    """One job of an idle queue, in milliseconds."""

    to_engine_ms: float
    to_result_ms: float

    @property
    def together_ms(self) -> float:
        """From submit to the result in hand: the engine takes no time of its own."""
        return self.to_engine_ms + self.to_result_ms


def submit_rate(client: Client, number: int) -> tuple[float, float]:
    """Submit from this one producer; returns jobs a second, by the wall and by its own processor time."""
    described = jobs(number)
    started, spent = time.perf_counter(), time.process_time()
    for first in range(0, number, BLOCK_JOBS):
        client.submit_many(described[first : first + BLOCK_JOBS])
    return number / (time.perf_counter() - started), number / (time.process_time() - spent)


def idle_latencies(client: Client, number: int) -> list[Latency]:
    """Submit one job at a time, each after the one before has ended."""
    seen = []
    for job in jobs(number):
        time.sleep(PAUSE_S)
        submitted = time.monotonic()
        result = client.submit(**job).result(RESULT_TIMEOUT_S)
        ended, reached = time.monotonic(), int(result.output or 0) / 1e9
        seen.append(Latency((reached - submitted) * 1000, (ended - reached) * 1000))
    return seen


class Shown(NamedTuple):
    """What Flower hears of a busy queue."""

    share: float
    """Of all jobs, those whose success was told."""
    events_per_s: float


def shown_in_flower(machine: Machine, client: Client, number: int) -> Shown:
    """Run jobs while their task events are listened to, on the channel that Flower listens to."""
    redis = Redis.from_url(machine.redis_url, protocol=2)
    redis.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    heard = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    heard.psubscribe(EVENT_CHANNELS)
    heard.get_message(timeout=LOOK_S)
    seconds = run(client, number)
    time.sleep(2 * PAUSE_S + EVENTS_WITHIN_S)
    events: list[dict[str, Any]] = []
    while (message := heard.get_message(timeout=LOOK_S)) is not None:
        told = json.loads(b64decode(json.loads(message["data"])["body"]))
        events += told if isinstance(told, list) else [told]
    heard.close()
    redis.close()
    succeeded = {event["uuid"] for event in events if event["type"] == "task-succeeded"}
    of_tasks = sum(event["type"].startswith("task-") for event in events)
    return Shown(len(succeeded) / number, of_tasks / seconds)


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of some values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def bytes_per_queued_job(number: int) -> float:
    """Return what the scheduler's memory grows by for each job that it has read from the ledger."""
    process = psutil.Process()
    before = process.memory_info().rss
    backlog = Backlog(PolicyConfig())
    for seq in range(number):
        revision = f"sha256:{seq % 1000:064x}"
        backlog.add(PendingJob(uuid4(), seq, seq % 3, revision, 8, 20, 128, float(seq), request_bytes=80))
    return (process.memory_info().rss - before) / number


class WithBacklog(NamedTuple):
    """How a scheduler fares with so many jobs waiting."""

    jobs_per_s: float
    memory_bytes: int


def dispatch_from(machine: Machine, num_queued: int, num_ended: int) -> WithBacklog:
    """Let jobs that wait in the ledger run until so many have ended."""
    database = Database(machine.database_url, statement_timeout_ms=0)
    with database.transaction() as connection:
        connection.execute(_FILL_JOBS, {"pool": POOL, "number": num_queued})

    def ended() -> int:
        with database.transaction() as connection:
            return int(connection.execute(_ENDED).scalar_one())

    def reach(number: int) -> float:
        while ended() < number:
            time.sleep(LOOK_S)
        return time.perf_counter()

    with serving(machine, batch=64, is_warm=False):
        begun = reach(num_ended // 10)
        before = ended()
        seconds = reach(num_ended) - begun
        rate, memory = (ended() - before) / seconds, machine.memory_bytes("scheduler")
    database.dispose()
    return WithBacklog(rate, memory)


def fill_adapters(machine: Machine, number: int) -> None:
    """Enter many adapters into the ledger at once, and wait until the scheduler has published them."""
    database = Database(machine.database_url)
    with database.transaction() as connection:
        connection.execute(_FILL_ADAPTERS, {"pool": POOL, "number": number})
    database.dispose()
    add_adapter(machine, "last-of-many")


def add_adapter(machine: Machine, name: str) -> float:
    """Enter one adapter, and return the longest time in ms for which it kept Redis from serving others."""
    database = Database(machine.database_url)
    redis = Redis.from_url(machine.redis_url, protocol=2)
    redis.config_set("slowlog-log-slower-than", SLOW_US)
    redis.config_set("slowlog-max-len", 1024)
    redis.slowlog_reset()
    revision = RevisionRow(f"sha256:{uuid4().hex * 2}", 8, ("q_proj",), 1000)
    database.run(lambda c: AdapterRepository(c).add_revision(POOL, name, revision))
    deadline = time.monotonic() + RESULT_TIMEOUT_S
    while not redis.hexists(PoolKeys(POOL).catalogue, name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"adapter {name} was not published")
        time.sleep(LOOK_S)
    slow: list[Any] = redis.slowlog_get(1024)
    redis.close()
    database.dispose()
    return max((entry["duration"] / 1000 for entry in slow), default=SLOW_US / 1000)

"""Whatever is killed, every accepted job ends once, rightly, and is charged once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg

from examples.tiny.tasks import TASKS, prompt
from lorayard.local.postgres_server import plain_url
from tests.acceptance.stack_rig import Asked, StackRig, Usage

JOBS = 500
MIDWAY = 0.3


def test_a_worker_is_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "worker-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("worker-1")

    results = rig.check(asked, "worker-killed")
    assert max(result.attempt for result in results) >= 2, "the worker held nothing when it was killed"
    rig.stack.restart("worker-1")


def test_the_scheduler_is_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "scheduler-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("scheduler")
    rig.stack.restart("scheduler")

    rig.check(asked, "scheduler-killed")


def test_a_worker_comes_and_another_drains_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "rolling")
    rig.await_share(asked, MIDWAY)

    newcomer = rig.stack.start_worker()
    assert rig.stack.stop_part("worker-1") == 0

    rig.check(asked, "rolling")
    assert rig.wasted_ms("rolling") == 0.0, "something ran twice"
    rig.stack.restart("worker-1")
    rig.stack.stop_part(newcomer)


def test_redis_restarts_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "redis-restarted")
    rig.await_share(asked, MIDWAY)

    rig.stack.restart("redis")

    rig.check(asked, "redis-restarted")


def test_postgres_restarts_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "postgres-restarted")
    rig.await_share(asked, MIDWAY)

    rig.stack.restart("postgres")

    rig.check(asked, "postgres-restarted")


def test_redis_and_postgres_are_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "servers-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("redis")
    rig.stack.kill("postgres")
    rig.stack.restart("postgres")
    rig.stack.restart("redis")

    rig.check(asked, "servers-killed")


def test_one_idempotency_key_is_submitted_a_hundred_times_at_once(rig: StackRig) -> None:
    ready = Barrier(100)

    def submit(_: int) -> Asked:
        ready.wait()
        handle = rig.client.submit(
            prompt("onceonly"), adapter="upper", max_tokens=24, tenant="idempotent", idempotency_key="the-key"
        )
        return Asked(handle, TASKS["upper"].answer("onceonly"))

    with ThreadPoolExecutor(100) as pool:
        asked = list(pool.map(submit, range(100)))

    assert len({item.handle.id for item in asked}) == 1
    results = [item.handle.result(60) for item in asked]
    assert {result.output for result in results} == {"ONCEONLY"}
    assert rig.usage("idempotent") == Usage(1, results[0].prompt_tokens, results[0].completion_tokens)
    with psycopg.connect(plain_url(rig.stack.postgres.url)) as connection:
        attempts = connection.execute(
            "SELECT count(*) FROM attempts WHERE job_id = %s", (asked[0].handle.id,)
        ).fetchone()
    assert attempts == (1,)

"""A real worker through restarts of Redis and Postgres."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from redis import Redis

from lorayard.contract.states import JobState
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.task_events import TaskEvents
from tests.integration.workers.worker_process import WorkerProcess
from tests.polling import eventually

if TYPE_CHECKING:
    from lorayard.local import Stack


def test_a_worker_commits_without_redis_and_consumes_again_after_its_restart(
    rig: Stack, leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    (running,) = leader.admit([ENDLESS.model_copy(update={"max_tokens": 500})])
    batch = leader.send(incarnation, leader.lease(incarnation, [running]))
    eventually(lambda: any(batch in line for line in worker.log_lines()), what="the job on the worker")

    with worker.stopped_engine():
        rig.redis.stop()
    (result,) = leader.ended([running])
    rig.redis.start()
    asked = questions(6)
    after = leader.ended(leader.dispatch(incarnation, [question.spec for question in asked]))

    assert result.state is JobState.SUCCEEDED
    assert [job.output for job in after] == [question.answer for question in asked]
    eventually(lambda: running in {reply.job_id for reply in leader.replies()}, 20, "the late reply")


REFUSALS = {
    # What a failover leaves: a replica, of nobody that answers.
    "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "NOPERM": (["ACL", "SETUSER", "default", "-@write"], ["ACL", "SETUSER", "default", "+@all"]),
}


def test_a_redis_that_refuses_for_a_while_ends_no_worker_and_no_job(
    rig: Stack, leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    (running,) = leader.admit([ENDLESS.model_copy(update={"max_tokens": 1000})])
    batch = leader.send(incarnation, leader.lease(incarnation, [running]))
    eventually(lambda: any(batch in line for line in worker.log_lines()), what="the job on the worker")

    start = len(worker.log_lines())
    with Redis.from_url(rig.redis.url) as redis:
        for name, (refuse, serve) in REFUSALS.items():
            since = len(worker.log_lines())
            redis.execute_command(*refuse)
            try:
                eventually(partial(_was_refused, worker, since), 20, f"an event refused, {name}")
            finally:
                redis.execute_command(*serve)
    (result,) = leader.ended([running])
    asked = questions(3)
    after = leader.ended(leader.dispatch(incarnation, [question.spec for question in asked]))

    assert (result.state, result.attempt) == (JobState.SUCCEEDED, 1)
    assert [job.output for job in after] == [question.answer for question in asked]
    eventually(lambda: running in {reply.job_id for reply in leader.replies()}, 20, "the late reply")
    assert not any("Frequent restarts" in line for line in worker.log_lines()[start:])


def _was_refused(worker: WorkerProcess, since: int) -> bool:
    return any("event_publisher.redis_unavailable" in line for line in worker.log_lines()[since:])


def test_a_restart_of_postgres_loses_no_result(
    rig: Stack, leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    asked = questions(8)
    job_ids = leader.admit([question.spec for question in asked])
    leased = leader.lease(incarnation, job_ids)
    with TaskEvents(leader.redis_url) as events:
        (running,) = leader.dispatch(incarnation, [ENDLESS.model_copy(update={"max_tokens": 1500})])
        events.await_event("task-started", running)

    rig.postgres.stop()
    leader.send(incarnation, leased)
    for event in ("arrivals.not_checked", "commit.database_unavailable"):
        eventually(lambda: any(event in line for line in worker.log_lines()), 60.0, event)  # noqa: B023
    rig.postgres.start()
    results = leader.ended(job_ids)

    assert [job.output for job in results] == [question.answer for question in asked]
    assert leader.ended([running])[0].state is JobState.SUCCEEDED
    assert worker.incarnation(leader) == incarnation


def test_a_worker_drains_without_redis(
    rig: Stack, leader: ScriptedLeader, start_worker: Callable[..., WorkerProcess]
) -> None:
    with start_worker(drain_grace_s=120) as worker, ExitStack() as until_it_drains:
        incarnation = worker.incarnation(leader)
        with TaskEvents(leader.redis_url) as events:
            (running,) = leader.dispatch(incarnation, [ENDLESS.model_copy(update={"max_tokens": 800})])
            events.await_event("task-started", running)
            until_it_drains.enter_context(worker.stopped_engine())

        rig.redis.stop()
        try:
            worker.process.send_signal(signal.SIGTERM)
            worker.await_draining()
            until_it_drains.close()
            status = worker.process.wait(150)
        finally:
            rig.redis.start()

    assert status == 0
    assert leader.states([running]) == ["succeeded"]

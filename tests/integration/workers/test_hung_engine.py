"""A real worker whose engine is stopped, as by a device call that never returns; then its consumer fails."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db.repositories.leases import LeaseRepository
from lorayard.contract.keys import worker_queue
from lorayard.contract.states import JobState
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.task_events import TaskEvents
from tests.integration.workers.worker_process import WorkerProcess
from tests.polling import eventually

PROGRAM = Path(__file__).with_name("impatient_worker.py")
LIMIT_S = 5.0
BEYOND_LIMIT_S = 5.0
START_S = 120.0


@pytest.fixture(scope="module")
def impatient(start_worker: Callable[..., WorkerProcess]) -> Iterator[WorkerProcess]:
    """A worker that gives its engine few seconds for a step."""
    worker = start_worker(worker_lease_s=60)
    worker.command = [sys.executable, str(PROGRAM), str(LIMIT_S)]
    with worker:
        yield worker


def test_an_engine_that_hangs_is_ended_and_one_that_was_stopped_with_its_worker_is_not(
    leader: ScriptedLeader, impatient: WorkerProcess
) -> None:
    worker = impatient
    with TaskEvents(leader.redis_url) as events:
        incarnation = worker.incarnation(leader)
        (slow,) = leader.dispatch(incarnation, [ENDLESS.model_copy(update={"max_tokens": 1000})])
        events.await_event("task-started", slow)
        stop_together(worker, 3 * LIMIT_S)
        assert leader.ended([slow], START_S)[0].state is JobState.SUCCEEDED

        running, cancelled = leader.dispatch(incarnation, [ENDLESS, ENDLESS])
        events.await_event("task-started", running)
        events.await_event("task-started", cancelled)
        os.kill(worker.engine_pids()[0], signal.SIGSTOP)
        leader.command(incarnation, "cancel", job_ids=(cancelled,))
        late = leader.dispatch(incarnation, [questions(1)[0].spec], first_token_within_s=0.1)
        ended = leader.ended([cancelled, *late], START_S)
        row = eventually(lambda: last_word(leader, incarnation), START_S, "the incarnation's last word")
        lost = leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))
        successor = worker.incarnation(leader)

        assert [result.state for result in ended] == [JobState.CANCELLED, JobState.EXPIRED]
        assert (row.ended_by, row.step_jobs[:1]) == ("engine_hung", [running])
        assert [pair.job_id for pair in lost.requeued] == [running]
        stuck_s, limit_s = stuck_and_limit(worker)
        assert LIMIT_S <= limit_s <= stuck_s <= limit_s + BEYOND_LIMIT_S
        assert leader.ended(leader.dispatch(successor, [questions(1)[0].spec]))[0].state is JobState.SUCCEEDED


def test_a_consumer_that_fails_gives_its_jobs_back_as_a_loss_and_without_a_strike(
    leader: ScriptedLeader, impatient: WorkerProcess
) -> None:
    leader.sql("DELETE FROM worker_hosts")  # what other tests have killed here says nothing of this host
    incarnation = impatient.incarnation(leader)
    running, other = leader.dispatch(incarnation, [ENDLESS, ENDLESS])
    leader.await_running(incarnation, running, other)

    leader.redis.lpush(worker_queue(incarnation), "no message of Celery's")
    row = eventually(lambda: last_word(leader, incarnation), START_S, "the incarnation's last word")
    lost = leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))

    assert row.ended_by == "consumer_failed"
    assert {pair.job_id for pair in lost.requeued} == {running, other}
    rows = leader.sql(
        "SELECT state, strikes, losses, suspect_group FROM jobs WHERE job_id = ANY(:ids)",
        ids=[running, other],
    )
    assert [tuple(row) for row in rows] == [("queued", 0, 1, None)] * 2


def stuck_and_limit(worker: WorkerProcess) -> tuple[float, float]:
    """Read how long an engine had made no progress when it was ended, and its limit; in seconds."""
    (line,) = [line for line in worker.log_lines() if '"engine.hung"' in line]
    found = re.search(r"no progress for ([\d.]+) s, of ([\d.]+) s at most", line)
    assert found, line
    return float(found[1]), float(found[2])


def stop_together(worker: WorkerProcess, seconds: float) -> None:
    """Stop a worker and its engine for so long."""
    pids = [worker.process.pid, *worker.engine_pids()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, 2 * seconds, "the end of the pause")
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)


def last_word(leader: ScriptedLeader, incarnation: str) -> Any:
    rows = leader.sql(
        "SELECT ended_by, step_jobs FROM workers WHERE incarnation = :i AND state = 'gone'", i=incarnation
    )
    return rows[0] if rows else None

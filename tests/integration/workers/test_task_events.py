"""What Flower sees of a real worker, and what it can do to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorayard.contract.states import JobState
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.task_events import TaskEvents


@pytest.fixture
def task_events(leader: ScriptedLeader) -> Iterator[TaskEvents]:
    """The events sent during one test."""
    with TaskEvents(leader.redis_url) as events:
        yield events


def test_jobs_and_micro_batches_show_as_tasks_of_one_worker(
    leader: ScriptedLeader, incarnation: str, task_events: TaskEvents
) -> None:
    (question,) = questions(1)
    job_ids = leader.admit([question.spec, ENDLESS.model_copy(update={"max_tokens": 300})])
    task_id = leader.send(incarnation, leader.lease(incarnation, job_ids))

    ends = [task_events.await_event("task-succeeded", name) for name in (*job_ids, task_id)]
    received = [task_events.await_event("task-received", name) for name in (*job_ids, task_id)]
    started = [task_events.await_event("task-started", name) for name in (*job_ids, task_id)]

    assert len({event["hostname"] for event in ends + received + started}) == 1
    assert ends[0]["hostname"].startswith("worker-1-")
    assert [event["name"] for event in received] == ["lorayard.generate"] * 2 + ["workers.run_micro_batch"]
    assert ends[0]["result"] == repr(question.answer)
    assert question.spec.adapter in received[0]["kwargs"]
    # The micro-batch ends with its last job, and that is its run time.
    assert ends[2]["runtime"] >= ends[1]["runtime"] > ends[0]["runtime"] > 0


def test_a_job_that_fails_shows_its_reason(
    leader: ScriptedLeader, incarnation: str, task_events: TaskEvents, tmp_path: Path
) -> None:
    job_ids = leader.admit([questions(1)[0].spec], revision=leader.add_damaged(tmp_path / "damaged"))

    leader.send(incarnation, leader.lease(incarnation, job_ids))

    assert "adapter_file" in task_events.await_event("task-failed", job_ids[0])["exception"]


def test_a_job_that_expires_shows_as_revoked(
    leader: ScriptedLeader, incarnation: str, task_events: TaskEvents
) -> None:
    running = leader.dispatch(incarnation, [ENDLESS] * 8)
    leader.await_running(incarnation, *running)

    (late,) = leader.dispatch(incarnation, [questions(1)[0].spec], first_token_within_s=0.2)

    assert task_events.await_event("task-revoked", late)["expired"]
    leader.command(incarnation, "cancel", job_ids=tuple(running))
    leader.ended(running)


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoke_of_a_job_cancels_it_alone(
    leader: ScriptedLeader, incarnation: str, task_events: TaskEvents, terminate: bool
) -> None:
    revoked, other = leader.dispatch(incarnation, [ENDLESS, ENDLESS])
    task_events.await_event("task-started", other)

    leader.revoke(str(revoked), terminate=terminate)
    (result,) = leader.ended([revoked])

    assert result.state is JobState.CANCELLED
    assert task_events.await_event("task-revoked", revoked)
    assert leader.states([other]) == ["leased"]
    leader.command(incarnation, "cancel", job_ids=(other,))
    leader.ended([other])


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoke_of_a_micro_batch_cancels_its_jobs(
    leader: ScriptedLeader, incarnation: str, task_events: TaskEvents, terminate: bool
) -> None:
    job_ids = leader.admit([ENDLESS, ENDLESS])
    task_id = leader.send(incarnation, leader.lease(incarnation, job_ids))
    task_events.await_event("task-started", job_ids[1])

    leader.revoke(task_id, terminate=terminate)
    results = leader.ended(job_ids)

    assert {result.state for result in results} == {JobState.CANCELLED}
    assert task_events.await_event("task-revoked" if terminate else "task-succeeded", task_id)

"""What a leader may expect of a worker, asked of a real process and of the one that stands in for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.records import EndedAttempt, JobAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from tests.integration.scheduler.scripted_worker import ScriptedWorker, succeed
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.polling import eventually


def end_or_hold(job: BatchJob) -> EndedAttempt | None:
    """Play what a real worker does: the endless job goes on, others end."""
    return None if job.request.get("max_tokens") == ENDLESS.max_tokens else succeed(job)


@pytest.fixture(params=["scripted", "real"])
def ready(request: pytest.FixtureRequest, leader: ScriptedLeader) -> Iterator[str]:
    """A worker's incarnation, ready for jobs."""
    if request.param == "real":
        yield request.getfixturevalue("incarnation")
        return
    with ScriptedWorker(leader, end_or_hold) as worker:
        yield worker.incarnation


def test_jobs_of_a_micro_batch_end_in_the_ledger_then_at_the_leader_and_the_client(
    leader: ScriptedLeader, ready: str
) -> None:
    job_ids = leader.dispatch(ready, [question.spec for question in questions(3)])

    results = leader.ended(job_ids)

    assert {result.state for result in results} == {JobState.SUCCEEDED}
    assert all(result.output and result.finish_reason == "stop" for result in results)
    assert [[row.ended for row in leader.attempts(job_id)] for job_id in job_ids] == [["succeeded"]] * 3
    ends = {JobAttempt(job_id, 1): "succeeded" for job_id in job_ids}
    eventually(lambda: ends.items() <= leader.told_ends(ready).items(), what="the ends, told")
    eventually(lambda: {reply.job_id for reply in leader.replies()} >= set(job_ids), what="all replies")
    replies = {reply.job_id: reply for reply in leader.replies()}
    assert [replies[job_id].result for job_id in job_ids] == results


def test_a_micro_batch_that_comes_twice_ends_and_is_told_once(leader: ScriptedLeader, ready: str) -> None:
    (job_id,) = leader.admit([questions(1)[0].spec])
    leased = leader.lease(ready, [job_id])

    leader.send(ready, leased)
    leader.send(ready, leased)
    leader.ended([job_id])
    last = leader.dispatch(ready, [questions(1)[0].spec])
    leader.ended(last)
    eventually(lambda: {reply.job_id for reply in leader.replies()} >= {job_id, *last}, what="both replies")

    assert len(leader.attempts(job_id)) == 1
    assert [reply.job_id for reply in leader.replies()].count(job_id) == 1


def test_heartbeats_list_what_is_held_until_a_cancel_ends_it(leader: ScriptedLeader, ready: str) -> None:
    (endless,) = leader.dispatch(ready, [ENDLESS])
    leader.await_held(ready, endless)
    leader.await_running(ready, endless)
    assert ready in {worker.incarnation for worker in leader.ready_workers()}

    leader.command(ready, "cancel", job_ids=(endless,))
    (result,) = leader.ended([endless])

    assert (result.state, result.output) == (JobState.CANCELLED, None)
    eventually(lambda: leader.told_ends(ready).get(JobAttempt(endless, 1)) == "cancelled", what="the end")
    eventually(lambda: endless not in leader.held(ready), what="a heartbeat without it")


def test_a_ping_through_its_own_queue_is_answered(leader: ScriptedLeader, ready: str) -> None:
    ping = leader.ping(ready)

    eventually(lambda: ping in leader.answered(), what="the answer")

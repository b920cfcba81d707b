"""Questions and cancels: what the leader answers on a client's stream."""

from __future__ import annotations

from uuid import uuid4

from db.records import EndedAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from lorayard.server.celery_app import make_app
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.integration.scheduler.yard import Yard
from tests.polling import eventually


def test_a_queued_job_is_cancelled_and_never_dispatched(yard: Yard) -> None:
    with yard.scheduler():
        (job_id,) = yard.submit()
        yard.wait_for(JobState.QUEUED, job_id)
        request_id = yard.ask("cancel", job_id)
        assert yard.reply(request_id=request_id).state is JobState.CANCELLED

        with ScriptedWorker(yard) as worker:
            yard.wait_for(JobState.SUCCEEDED, *yard.submit())

    assert job_id not in {job.job_id for job in worker.jobs}


def test_cancelling_a_finished_job_answers_its_final_state(yard: Yard) -> None:
    with yard.scheduler(), ScriptedWorker(yard):
        (job_id,) = yard.submit()
        yard.wait_for(JobState.SUCCEEDED, job_id)

        reply = yard.reply(request_id=yard.ask("cancel", job_id))

    assert reply.state is JobState.SUCCEEDED
    assert reply.result is not None
    assert reply.result.output == "HELLO"


def test_an_unknown_job_is_answered_without_a_state(yard: Yard) -> None:
    with yard.scheduler():
        reply = yard.reply(request_id=yard.ask("lookup", uuid4()))

    assert reply.state is None


def test_a_lookup_brings_a_whole_output_that_a_reply_had_omitted(yard: Yard) -> None:
    def shout(job: BatchJob) -> EndedAttempt:
        return EndedAttempt(job.job_id, job.attempt, JobState.SUCCEEDED, output="x" * 900_000)

    with yard.scheduler(), ScriptedWorker(yard, shout):
        (job_id,) = yard.submit()
        assert yard.reply(job_id=job_id, state=JobState.SUCCEEDED).output_omitted

        reply = yard.reply(request_id=yard.ask("lookup", job_id))

    assert reply.result is not None
    assert reply.result.output == "x" * 900_000


def test_an_output_above_a_megabyte_is_left_out_of_lookups_too(yard: Yard) -> None:
    def shout(job: BatchJob) -> EndedAttempt:
        return EndedAttempt(job.job_id, job.attempt, JobState.SUCCEEDED, output="x" * 1_000_001)

    with yard.scheduler(), ScriptedWorker(yard, shout):
        (job_id,) = yard.submit()
        yard.wait_for(JobState.SUCCEEDED, job_id)

        reply = yard.reply(request_id=yard.ask("lookup", job_id))

    assert reply.output_omitted
    assert reply.result is not None
    assert reply.result.output is None


def test_a_malformed_message_does_not_hold_up_the_next(yard: Yard) -> None:
    yard.redis.xadd(yard.keys.control, {"body": b"{}"})

    with yard.scheduler():
        assert yard.reply(request_id=yard.ask("lookup", uuid4())).state is None


def test_a_revoke_in_flower_cancels_a_queued_job(yard: Yard) -> None:
    app = make_app(yard.redis_url)
    with yard.scheduler():
        (job_id,) = yard.submit()
        yard.wait_for(JobState.QUEUED, job_id)

        def revoke() -> bool:
            # A broadcast reaches only those who listen already, so it is said until it is heard.
            app.control.revoke(str(job_id))
            return yard.counts() == {"cancelled": 1}

        eventually(revoke)
    app.close()

    assert {reply.state for reply in yard.replies()} == {JobState.CANCELLED}


def test_a_revoke_of_a_micro_batch_cancels_its_jobs(yard: Yard) -> None:
    app = make_app(yard.redis_url)
    with yard.scheduler(), ScriptedWorker(yard, hold) as worker:
        job_ids = yard.submit(2)
        eventually(lambda: len(worker.held) == 2)

        def revoke() -> bool:
            for batch in worker.batches:
                app.control.revoke(str(batch.batch_id), terminate=True)
            return len(yard.sql("SELECT job_id FROM cancellations")) == 2

        eventually(revoke)
        worker.end([end for job in worker.jobs if (end := succeed(job))])
    app.close()

    assert {row.job_id for row in yard.sql("SELECT job_id FROM cancellations")} == set(job_ids)

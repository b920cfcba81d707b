"""Questions and cancels: what the leader answers on a client's stream."""

from __future__ import annotations

from uuid import uuid4

from structlog.testing import capture_logs

from db.records import EndedAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from lorayard.server.celery_app import make_app
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.polling import eventually


def test_a_queued_job_is_cancelled_and_never_dispatched(rig: PoolRig) -> None:
    with rig.scheduler():
        (job_id,) = rig.submit()
        rig.wait_for(JobState.QUEUED, job_id)
        request_id = rig.ask("cancel", job_id)
        assert rig.reply(request_id=request_id).state is JobState.CANCELLED

        with ScriptedWorker(rig) as worker:
            rig.wait_for(JobState.SUCCEEDED, *rig.submit())

    assert job_id not in {job.job_id for job in worker.jobs}


def test_cancelling_a_finished_job_answers_its_final_state(rig: PoolRig) -> None:
    with rig.scheduler(), ScriptedWorker(rig):
        (job_id,) = rig.submit()
        rig.wait_for(JobState.SUCCEEDED, job_id)

        reply = rig.reply(request_id=rig.ask("cancel", job_id))

    assert reply.state is JobState.SUCCEEDED
    assert reply.result is not None
    assert reply.result.output == "HELLO"


def test_an_unknown_job_is_answered_without_a_state(rig: PoolRig) -> None:
    with rig.scheduler():
        reply = rig.reply(request_id=rig.ask("lookup", uuid4()))

    assert reply.state is None


def test_a_lookup_brings_a_whole_output_that_a_reply_had_omitted(rig: PoolRig) -> None:
    def shout(job: BatchJob) -> EndedAttempt:
        return EndedAttempt(job.job_id, job.attempt, JobState.SUCCEEDED, output="x" * 900_000)

    with rig.scheduler(), ScriptedWorker(rig, shout):
        (job_id,) = rig.submit()
        assert rig.reply(job_id=job_id, state=JobState.SUCCEEDED).output_omitted

        reply = rig.reply(request_id=rig.ask("lookup", job_id))

    assert reply.result is not None
    assert reply.result.output == "x" * 900_000


def test_an_output_above_a_megabyte_is_left_out_of_lookups_too(rig: PoolRig) -> None:
    def shout(job: BatchJob) -> EndedAttempt:
        return EndedAttempt(job.job_id, job.attempt, JobState.SUCCEEDED, output="x" * 1_000_001)

    with rig.scheduler(), ScriptedWorker(rig, shout):
        (job_id,) = rig.submit()
        rig.wait_for(JobState.SUCCEEDED, job_id)

        reply = rig.reply(request_id=rig.ask("lookup", job_id))

    assert reply.output_omitted
    assert reply.result is not None
    assert reply.result.output is None


def test_a_malformed_message_does_not_hold_up_the_next(rig: PoolRig) -> None:
    rig.redis.xadd(rig.keys.control, {"body": b"{}"})

    with rig.scheduler():
        assert rig.reply(request_id=rig.ask("lookup", uuid4())).state is None


def test_a_revoke_in_flower_cancels_a_queued_job(rig: PoolRig) -> None:
    app = make_app(rig.redis_url)
    with rig.scheduler():
        (job_id,) = rig.submit()
        rig.wait_for(JobState.QUEUED, job_id)

        def revoke() -> bool:
            # A broadcast reaches only those who listen already, so it is said until it is heard.
            app.control.revoke(str(job_id))
            return rig.counts() == {"cancelled": 1}

        eventually(revoke)
    app.close()

    assert {reply.state for reply in rig.replies()} == {JobState.CANCELLED}


def test_a_revoke_of_a_micro_batch_cancels_its_jobs(rig: PoolRig) -> None:
    app = make_app(rig.redis_url)
    with rig.scheduler(), ScriptedWorker(rig, hold) as worker:
        job_ids = rig.submit(2)
        eventually(lambda: len(worker.held) == 2)

        def revoke() -> bool:
            for batch in worker.batches:
                app.control.revoke(str(batch.batch_id), terminate=True)
            return len(rig.sql("SELECT job_id FROM cancellations")) == 2

        eventually(revoke)
        worker.end([end for job in worker.jobs if (end := succeed(job))])
        eventually(lambda: not rig.sql("SELECT 1 FROM jobs WHERE ended_at IS NULL"))
        with capture_logs() as log:
            revoke()  # of a micro-batch that has ended, which means no job any more
            eventually(lambda: any(line["event"] == "job.cancel_asked" for line in log))
    app.close()

    assert {row.job_id for row in rig.sql("SELECT job_id FROM cancellations")} == set(job_ids)


def test_a_waiting_job_is_told_its_place_and_once_a_job_has_ended_when_it_will_end(rig: PoolRig) -> None:
    with rig.scheduler(overcommit_s=0.0):
        job_ids = rig.submit(10)
        rig.wait_for(JobState.QUEUED, *job_ids)
        eventually(
            lambda: rig.reply(request_id=rig.ask("lookup", job_ids[9], place=True)).queue_position == 9
        )
        assert rig.reply(request_id=rig.ask("lookup", job_ids[9])).queue_position is None
        assert rig.reply(request_id=rig.ask("lookup", job_ids[0], place=True)).eta_s is None

        with ScriptedWorker(rig, hold) as worker:
            eventually(lambda: len(worker.held) == 8)
            worker.end([end for job in worker.jobs[:1] if (end := succeed(job))])
            rig.wait_for(JobState.LEASED, *job_ids[1:9])

            waiting = rig.reply(request_id=rig.ask("lookup", job_ids[9], place=True))
            held = rig.reply(request_id=rig.ask("lookup", job_ids[1], place=True))
            ended = rig.reply(request_id=rig.ask("lookup", job_ids[0], place=True))

    assert (waiting.state, waiting.queue_position) == (JobState.QUEUED, 0)
    assert waiting.eta_s is not None
    assert waiting.eta_s > 0
    assert (held.state, held.queue_position) == (JobState.LEASED, None)
    assert held.eta_s is not None
    assert (ended.queue_position, ended.eta_s) == (None, None)

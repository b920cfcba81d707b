"""From the intake to a worker's queue and back, and what is done about workers that fail."""

from __future__ import annotations

import dataclasses
import time
from typing import cast

from db.records import EndedAttempt
from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import worker_queue
from lorayard.contract.messages import Command, Residency
from lorayard.contract.states import JobState
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import LIMITS, ScriptedWorker, hold, succeed
from tests.polling import eventually


def test_submitted_jobs_reach_a_worker_and_their_ends_come_back(rig: PoolRig) -> None:
    with rig.scheduler(max_batch_jobs=3), ScriptedWorker(rig) as worker:
        job_ids = rig.submit(40)

        rig.wait_for(JobState.SUCCEEDED, *job_ids)
        eventually(lambda: {reply.job_id for reply in rig.replies()} == set(job_ids))

    assert sorted(job.job_id for job in worker.jobs) == sorted(job_ids)
    assert {job.attempt for job in worker.jobs} == {1}
    assert max(len(batch.jobs) for batch in worker.batches) == 3
    assert rig.intake_is_empty()


def test_a_worker_is_given_no_more_than_its_target_until_it_ends_something(rig: PoolRig) -> None:
    with rig.scheduler(overcommit_s=0.0), ScriptedWorker(rig, hold) as worker:
        rig.submit(20)
        eventually(lambda: len(worker.jobs) == LIMITS.max_num_seqs)

        worker.script = succeed
        worker.end([end for job in worker.jobs if (end := succeed(job))])
        eventually(lambda: rig.counts() == {"succeeded": 20})


def test_urgent_jobs_go_first(rig: PoolRig) -> None:
    low = rig.submit(8, priority="low")
    high = rig.submit(8, priority="high")

    with rig.scheduler(overcommit_s=0.0):
        rig.wait_for(JobState.QUEUED, *low, *high)
        with ScriptedWorker(rig, hold) as worker:
            eventually(lambda: len(worker.jobs) == 8)

    assert sorted(job.job_id for job in worker.jobs) == sorted(high)


def test_a_job_that_waited_beyond_the_configured_bound_goes_before_urgent_ones(rig: PoolRig) -> None:
    (starved,) = rig.submit(priority="low")
    urgent = rig.submit(20, priority="high")
    limits = dataclasses.replace(LIMITS, max_num_seqs=1)

    with rig.scheduler(overcommit_s=0.0, starvation_s=0.1):
        rig.wait_for(JobState.QUEUED, starved, *urgent)
        eventually(lambda: rig.sql("SELECT 1 FROM jobs HAVING max(submitted_at) < now() - interval '0.5 s'"))
        with ScriptedWorker(rig, limits=limits) as worker:
            rig.wait_for(JobState.SUCCEEDED, starved, *urgent, timeout_s=60.0)

    assert [job.job_id for job in worker.jobs].index(starved) <= 4


def test_a_resident_adapter_draws_its_jobs(rig: PoolRig) -> None:
    revision = rig.add_adapter("sql")
    with rig.scheduler(), ScriptedWorker(rig) as one, ScriptedWorker(rig) as two:
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(4))
        before = len(one.jobs)
        two.report(residency=[Residency(revision=revision, tier="device")], epoch=1_000)
        one.report(residency=[Residency(revision=revision, tier="none")], epoch=1_000)
        job_ids = rig.submit(4, adapter="sql")
        rig.wait_for(JobState.SUCCEEDED, *job_ids)

    assert len(one.jobs) == before
    assert {job.revision for job in two.jobs if job.job_id in job_ids} == {revision}


def test_a_job_whose_message_never_arrives_goes_elsewhere_and_the_deaf_worker_gets_no_more(
    rig: PoolRig,
) -> None:
    with rig.scheduler(), ScriptedWorker(rig, listens=False):
        (job_id,) = rig.submit()
        rig.wait_for(JobState.LEASED, job_id)
        with ScriptedWorker(rig) as heir:
            rig.wait_for(JobState.SUCCEEDED, job_id, timeout_s=30.0)
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(20), timeout_s=30.0)

    assert {job.attempt for job in heir.jobs if job.job_id == job_id} == {2}
    assert {job.attempt for job in heir.jobs if job.job_id != job_id} == {1}
    assert {tuple(row) for row in rig.sql("SELECT strikes, losses FROM jobs")} == {(0, 0)}


def test_a_lost_workers_jobs_run_elsewhere_and_its_queue_is_deleted(rig: PoolRig) -> None:
    with rig.scheduler():
        doomed = ScriptedWorker(rig, hold)
        with doomed:
            job_ids = rig.submit(4)
            rig.wait_for(JobState.LEASED, *job_ids)
            eventually(lambda: len(doomed.held) == 4)
            # One heartbeat more, so that the leader has seen them listed.
            eventually(lambda: rig.sql("SELECT 1 FROM workers WHERE cardinality(running_jobs) = 4"))
        rig.redis.lpush(worker_queue(doomed.incarnation), b"left behind")
        doomed.run_out()
        with ScriptedWorker(rig) as heir:
            rig.wait_for(JobState.SUCCEEDED, *job_ids, timeout_s=15.0)

    assert {job.attempt for job in heir.jobs} == {2}
    assert {tuple(row) for row in rig.sql("SELECT strikes, losses FROM jobs")} == {(0, 1)}
    assert [
        row.state for row in rig.sql("SELECT state FROM workers WHERE incarnation = :i", i=doomed.incarnation)
    ] == ["lost"]
    assert not rig.redis.exists(worker_queue(doomed.incarnation))


def test_a_fresh_leader_waits_a_full_lease_before_it_calls_a_worker_lost(rig: PoolRig) -> None:
    with ScriptedWorker(rig, lease_s=0.5, beat_every_s=60.0) as silent:
        eventually(lambda: rig.sql("SELECT 1 FROM worker_leases WHERE expires_at < now()"))
        with rig.scheduler(worker_lease_s=3.0):
            began_at = time.monotonic()
            eventually(
                lambda: rig.sql(
                    "SELECT 1 FROM workers WHERE state = 'lost' AND incarnation = :i", i=silent.incarnation
                ),
                10.0,
            )

    assert time.monotonic() - began_at >= 2.9


def test_jobs_that_a_draining_worker_gives_back_run_elsewhere(rig: PoolRig) -> None:
    with rig.scheduler(), ScriptedWorker(rig, hold) as leaving:
        job_ids = rig.submit(3)
        eventually(lambda: len(leaving.held) == 3)
        rig.database.run(lambda c: WorkerRepository(c).set_state(leaving.incarnation, "draining"))
        with ScriptedWorker(rig) as heir:
            leaving.end([EndedAttempt(job.job_id, job.attempt, JobState.QUEUED) for job in leaving.jobs])
            rig.wait_for(JobState.SUCCEEDED, *job_ids)

    assert sorted(job.job_id for job in heir.jobs) == sorted(job_ids)


def test_a_queued_job_expires_when_its_deadline_passes(rig: PoolRig) -> None:
    with rig.scheduler():
        (job_id,) = rig.submit(deadline_s=0.3)
        reply = rig.reply(job_id=job_id)

    assert reply.state is JobState.EXPIRED


def test_the_leader_tells_a_worker_to_cancel_what_runs_there(rig: PoolRig) -> None:
    # A worker that obeys may have ended the job before the leader looks for what it answers.
    with rig.scheduler(term_ttl_s=60.0), ScriptedWorker(rig, hold, obeys=False) as worker:
        (job_id,) = rig.submit()
        eventually(lambda: job_id in worker.held)

        request_id = rig.ask("cancel", job_id)
        assert rig.reply(request_id=request_id).state is JobState.LEASED
        entries = eventually(lambda: rig.redis.xrange(rig.keys.commands(worker.incarnation)))

    (entry,) = cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
    command = Command.from_entry(entry[1])
    assert (command.kind, command.job_ids, command.term) == ("cancel", (job_id,), 1)

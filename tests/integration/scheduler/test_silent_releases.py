"""Jobs that a worker gave back in the ledger while the news of it got lost: none may be forgotten."""

from __future__ import annotations

from db.records import JobAttempt
from db.repositories.leases import LeaseRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.states import JobState
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold
from tests.polling import eventually


def test_jobs_that_a_worker_gave_back_before_it_left_without_a_word_run_elsewhere(rig: PoolRig) -> None:
    with rig.scheduler():
        leaving = ScriptedWorker(rig, hold)
        with leaving:
            job_ids = rig.submit(3)
            eventually(lambda: len(leaving.held) == 3)
        _give_back(rig, leaving)
        rig.database.run(lambda c: WorkerRepository(c).set_state(leaving.incarnation, "gone"))
        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *job_ids, timeout_s=15.0)


def test_jobs_that_a_worker_gave_back_before_it_was_killed_run_elsewhere(rig: PoolRig) -> None:
    with rig.scheduler():
        doomed = ScriptedWorker(rig, hold)
        with doomed:
            job_ids = rig.submit(3)
            eventually(lambda: len(doomed.held) == 3)
        _give_back(rig, doomed)
        doomed.run_out()
        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *job_ids, timeout_s=15.0)

    assert {row.strikes for row in rig.sql("SELECT strikes FROM jobs")} == {0}


def test_jobs_that_a_worker_gave_back_and_lists_no_longer_are_dispatched_again(rig: PoolRig) -> None:
    with rig.scheduler(), ScriptedWorker(rig, hold) as worker:
        job_ids = rig.submit(3)
        eventually(lambda: len(worker.held) == 3)
        _give_back(rig, worker)
        worker.held.clear()

        eventually(lambda: {job.job_id for job in worker.jobs if job.attempt == 2} == set(job_ids))


def _give_back(rig: PoolRig, worker: ScriptedWorker) -> None:
    pairs = [JobAttempt(job.job_id, job.attempt) for job in worker.held.values()]
    released = rig.database.run(lambda c: LeaseRepository(c).release(worker.incarnation, pairs))
    assert len(released.requeued) == len(pairs)

"""From the intake to a worker's queue and back: what a job meets when nothing goes wrong."""

from __future__ import annotations

import time

from kombu.entity import Queue  # noqa: F401

from lorayard.contract.states import JobState
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.integration.scheduler.yard import Yard


def test_submitted_jobs_reach_a_worker_and_their_ends_come_back(yard: Yard) -> None:
    with yard.scheduler(), ScriptedWorker(yard) as worker:
        job_ids = yard.submit(40)

        yard.wait_for(JobState.SUCCEEDED, *job_ids)

    assert sorted(job.job_id for job in worker.jobs) == sorted(job_ids)
    assert {job.attempt for job in worker.jobs} == {1}
    assert {reply.job_id for reply in yard.replies()} == set(job_ids)
    assert yard.intake_is_empty()


def test_a_job_for_an_idle_worker_is_under_way_at_once(yard: Yard) -> None:
    with yard.scheduler(), ScriptedWorker(yard):
        yard.wait_for(JobState.SUCCEEDED, *yard.submit())

        took_s = []
        for _ in range(20):
            began_at = time.monotonic()
            (job_id,) = yard.submit()
            yard.reply(job_id=job_id, state=JobState.SUCCEEDED)
            took_s.append(time.monotonic() - began_at)

    # Polling adds up to 20 ms, each of four transactions about 3.
    assert sorted(took_s)[10] < 0.15

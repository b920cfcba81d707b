"""What the leader makes of adapters that workers could not load: whose fault it is, and where jobs go."""

from __future__ import annotations

import dataclasses
from typing import cast

from db.records import EndedAttempt, StoreFailureRow
from db.repositories.store_failures import StoreFailureRepository
from lorayard.contract.messages import AdapterFailure, BatchJob, Residency
from lorayard.contract.states import JobState
from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from scheduler.catalogue import Catalogue
from scheduler.deliveries import Deliveries
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.flower_reporter import FlowerReporter
from scheduler.instructions import Instructions
from scheduler.quarantine import Quarantine
from scheduler.queue_feed import QueueFeed
from scheduler.store_failures import StoreFailures
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import LIMITS, ScriptedWorker, hold, succeed
from tests.polling import eventually

MISSING = "adapter_not_found"


def give_back(job: BatchJob) -> EndedAttempt:
    return EndedAttempt(job.job_id, job.attempt, JobState.QUEUED)


def missing(revision: str) -> AdapterFailure:
    return AdapterFailure(revision=revision, code=MISSING, message="there is no folder", retryable=True)


def is_known(rig: PoolRig, worker: ScriptedWorker) -> bool:
    """Whether the leader has given it a job; what strangers tell does not count."""
    rig.submit()
    return bool(worker.jobs)


def state_of(rig: PoolRig, name: str) -> bytes:
    entry = cast("bytes | None", rig.redis.hget(rig.keys.catalogue, name))
    return entry or b""


def test_a_bad_revision_is_set_aside_with_its_jobs_tried_again_and_trusted_once_it_loads(
    rig: PoolRig,
) -> None:
    revision = rig.add_adapter("torn")
    limits = dataclasses.replace(LIMITS, max_num_seqs=1)

    with (
        rig.scheduler(overcommit_s=0.0, adapter_pause_s=0.1),
        ScriptedWorker(rig, hold, limits=limits) as worker,
    ):
        rig.submit(3, adapter="torn")
        eventually(lambda: len(worker.held) == 1)
        worker.report(AdapterFailure(revision=revision, code="adapter_shape", message="8", retryable=False))
        eventually(lambda: rig.counts() == {"leased": 1, "rejected": 2})
        eventually(lambda: b"quarantined" in state_of(rig, "torn"))
        eventually(lambda: worker.commands("prefetch")[-1:], what="a second try")

        worker.report(residency=[Residency(revision=revision, tier="host")], epoch=1_000)
        eventually(lambda: b"active" in state_of(rig, "torn"))

    assert {command.revisions for command in worker.commands("prefetch")} == {(revision,)}
    codes = {r.result.error.code for r in rig.replies() if r.result and r.result.error}
    assert codes == {"adapter_quarantined"}


def test_what_a_store_could_not_give_goes_elsewhere_and_is_set_aside_after_two_stores(rig: PoolRig) -> None:
    revision = rig.add_adapter("gone")

    with rig.scheduler(), ScriptedWorker(rig, give_back, store="one:/s") as one:
        eventually(lambda: is_known(rig, one))
        one.report(missing(revision))
        eventually(lambda: rig.sql("SELECT 1 FROM store_failures WHERE store = 'one:/s' AND tries = 1"))
        (job_id,) = rig.submit(adapter="gone")
        rig.wait_for(JobState.QUEUED, job_id)
        with ScriptedWorker(rig, give_back, store="two:/s") as two:
            eventually(lambda: job_id in {job.job_id for job in two.jobs})
            two.report(missing(revision))
            rig.wait_for(JobState.REJECTED, job_id)

    assert job_id not in {job.job_id for job in one.jobs}


def test_two_workers_of_one_store_are_one_and_their_jobs_wait_until_it_is_asked_again(rig: PoolRig) -> None:
    revision = rig.add_adapter("away")

    with (
        rig.scheduler(adapter_pause_s=1.0),
        ScriptedWorker(rig, give_back, store="one:/s") as one,
        ScriptedWorker(rig, give_back, store="one:/s") as two,
    ):
        eventually(lambda: is_known(rig, one) and is_known(rig, two))
        for worker in (one, two):
            worker.report(missing(revision))
        eventually(lambda: rig.redis.xlen(rig.keys.worker_events) == 0)
        (job_id,) = rig.submit(adapter="away")
        rig.wait_for(JobState.QUEUED, job_id)
        (failure,) = rig.database.run(lambda c: StoreFailureRepository(c).listed(rig.pool))
        one.script = two.script = succeed
        rig.wait_for(JobState.SUCCEEDED, job_id)

    result = rig.get(job_id)
    assert result is not None
    assert result.attempt == 1
    assert (failure.store, failure.code, failure.tries) == ("one:/s", MISSING, 1)


def test_a_revision_that_a_worker_has_in_memory_is_not_set_aside_for_another_ones_files(rig: PoolRig) -> None:
    revision = rig.add_adapter("kept")

    with (
        rig.scheduler(),
        ScriptedWorker(rig, store="one:/s") as one,
        ScriptedWorker(rig, store="two:/s") as two,
        ScriptedWorker(rig, store="three:/s") as three,
    ):
        eventually(lambda: all(is_known(rig, worker) for worker in (one, two, three)))
        three.report(residency=[Residency(revision=revision, tier="host")], epoch=1_000)
        for worker in (one, two):
            worker.report(missing(revision))
        eventually(lambda: rig.sql("SELECT 1 FROM store_failures HAVING count(*) = 2"))
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3, adapter="kept"))

    assert {job.revision for job in (*one.jobs, *two.jobs)} == {None}


def test_added_again_a_revision_is_asked_for_at_once(rig: PoolRig) -> None:
    revision = rig.add_adapter("back")

    with rig.scheduler(), ScriptedWorker(rig, store="one:/s") as worker:
        eventually(lambda: is_known(rig, worker))
        worker.report(missing(revision))
        eventually(lambda: rig.sql("SELECT 1 FROM store_failures"))
        (job_id,) = rig.submit(adapter="back")
        rig.wait_for(JobState.QUEUED, job_id)
        rig.add_adapter("back")
        rig.wait_for(JobState.SUCCEEDED, job_id)

    assert rig.sql("SELECT 1 FROM store_failures") == []


def test_the_next_leader_knows_what_stores_could_not_give(rig: PoolRig) -> None:
    revision = rig.add_adapter("away")

    with ScriptedWorker(rig, store="one:/s") as worker:
        with rig.scheduler():
            eventually(lambda: is_known(rig, worker))
            worker.report(missing(revision))
            eventually(lambda: rig.sql("SELECT 1 FROM store_failures"))
        with rig.scheduler():
            waiting = rig.submit(adapter="away")
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))

    assert not {job.job_id for job in worker.jobs}.intersection(waiting)


def test_a_change_of_the_catalogue_is_followed_whoever_read_it_first(rig: PoolRig) -> None:
    context, catalogue, failures = rig.take_office(), Catalogue(rig.pool), StoreFailures()
    queue = QueueFeed(context, catalogue, Instructions(rig.pool, lambda: 0.0), lambda: 0.0)
    flower = FlowerReporter(JobEvents(make_app(rig.redis_url), "scheduler@test"))
    fleet = Fleet(context.items, failures, max_model_len=64, overcommit_s=0.0)
    quarantine = Quarantine(
        context, catalogue, fleet, failures, Endings(context, queue, flower, Deliveries()), lambda: 100.0
    )
    revision = rig.add_adapter("back")
    row = StoreFailureRow(revision, "one:/s", MISSING, "why", 5.0, 5.0, 25.0, 30.0, 1)
    rig.database.run(lambda c: StoreFailureRepository(c).keep(rig.pool, row))

    context.transact(catalogue.refresh)
    quarantine.follow_catalogue()
    assert failures.cooling("one:/s", 110.0) == {revision}

    rig.add_adapter("back")
    context.transact(catalogue.refresh)  # as the intake does, before it resolves names
    assert not context.transact(catalogue.refresh)
    quarantine.follow_catalogue()
    assert failures.cooling("one:/s", 110.0) == set()

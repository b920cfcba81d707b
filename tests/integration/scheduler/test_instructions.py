"""What people set in the ledger, and what the leader does about it: pauses, quotas, drains."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from db.records import EVERY_POOL, EndedAttempt, TenantQuota
from db.repositories.pauses import PauseRepository
from db.repositories.tenants import TenantRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.errors import QuotaExceeded
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from scheduler.forecast import MAX_RETRY_S
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.polling import eventually


def pauses(rig: PoolRig, method: str, kind: str, name: str) -> None:
    pool = EVERY_POOL if kind == "tenant" else rig.pool
    assert rig.database.run(lambda c: getattr(PauseRepository(c), method)(kind, pool, name))


def is_planned(rig: PoolRig, job_id: UUID) -> bool:
    """Whether the leader counts a job among those that it gives to workers."""
    reply = rig.reply(request_id=rig.ask("lookup", job_id, place=True))
    return reply.queue_position is not None


def test_what_is_paused_waits_and_ends_while_others_go_on_under_every_leader(rig: PoolRig) -> None:
    rig.add_adapter("sql")
    with rig.scheduler():
        (kept, cancelled) = rig.submit(2, tenant="acme")
        (expired,) = rig.submit(tenant="acme", deadline_s=60.0)
        (of_adapter,) = rig.submit(adapter="sql")
        paused = [kept, cancelled, expired, of_adapter]
        eventually(lambda: all(is_planned(rig, job_id) for job_id in paused))
        pauses(rig, "pause", "tenant", "acme")
        pauses(rig, "pause", "adapter", "sql")
        eventually(lambda: not any(is_planned(rig, job_id) for job_id in paused))

        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(2))
            assert rig.reply(request_id=rig.ask("cancel", cancelled)).state is JobState.CANCELLED
            rig.sql("UPDATE jobs SET deadline_at = now() WHERE job_id = :id", id=expired)
            rig.wait_for(JobState.EXPIRED, expired)
            rig.wait_for(JobState.QUEUED, kept, of_adapter)

    with rig.scheduler(), ScriptedWorker(rig):
        rig.wait_for(JobState.SUCCEEDED, *rig.submit())
        rig.wait_for(JobState.QUEUED, kept, of_adapter)

        pauses(rig, "resume", "adapter", "sql")
        rig.wait_for(JobState.SUCCEEDED, of_adapter)
        rig.wait_for(JobState.QUEUED, kept)
        pauses(rig, "resume", "tenant", "acme")
        rig.wait_for(JobState.SUCCEEDED, kept)


def test_a_paused_pool_gives_its_workers_nothing_and_keeps_every_place(rig: PoolRig) -> None:
    def retry_after_s() -> float:
        found: Any = rig.redis.hget(rig.keys.admission, "retry_after_s")
        return float(found or 0)

    with rig.scheduler(), ScriptedWorker(rig) as worker:
        rig.wait_for(JobState.SUCCEEDED, *rig.submit())
        eventually(lambda: retry_after_s() < MAX_RETRY_S)
        pauses(rig, "pause", "pool", rig.pool)
        eventually(lambda: retry_after_s() == MAX_RETRY_S)

        jobs = rig.submit(3)
        eventually(lambda: is_planned(rig, jobs[2]))
        rig.wait_for(JobState.QUEUED, *jobs)
        assert len(worker.jobs) == 1

        pauses(rig, "resume", "pool", rig.pool)
        rig.wait_for(JobState.SUCCEEDED, *jobs)


def test_a_quota_refuses_a_tenants_jobs_until_some_of_them_have_gone(rig: PoolRig) -> None:
    rig.database.run(lambda c: TenantRepository(c).set_quota(TenantQuota("acme", max_queued_jobs=3)))

    def room() -> str | None:
        found: Any = rig.redis.hget(rig.keys.quotas, "acme")
        return found and found.decode().split()[1]

    with rig.scheduler():
        eventually(lambda: room() == "3")
        jobs = rig.submit(3, tenant="acme")
        with pytest.raises(QuotaExceeded):
            rig.submit(tenant="acme")
        eventually(lambda: room() == "0")
        pauses(rig, "pause", "tenant", "acme")
        eventually(lambda: not is_planned(rig, jobs[0]))
        with pytest.raises(QuotaExceeded):
            rig.submit(tenant="acme")
        rig.submit(5, tenant="other")
        pauses(rig, "resume", "tenant", "acme")

        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *jobs)
            eventually(lambda: room() == "3")
            rig.submit(3, tenant="acme")
            rig.database.run(lambda c: TenantRepository(c).set_quota(TenantQuota("acme")))
            eventually(lambda: room() is None)


def test_jobs_that_a_worker_cannot_begin_come_back_for_an_idle_one(rig: PoolRig) -> None:
    def end_the_first(job: BatchJob) -> EndedAttempt | None:
        return succeed(job) if job.request["prompt"] == "first" else hold(job)

    with rig.scheduler(overcommit_s=1e300), ScriptedWorker(rig, end_the_first) as busy:
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(prompt="first"))
        rig.submit(12)  # however long ago the first one ended, more is given to it than the 8 that it runs
        eventually(lambda: len(busy.held) == 12)
        waiting = list(busy.held)[8:]

        with ScriptedWorker(rig) as idle:
            rig.wait_for(JobState.SUCCEEDED, *waiting)
        recalled = {job_id for command in busy.commands("recall") for job_id in command.job_ids}

    assert recalled == set(waiting)
    assert {job.job_id for job in idle.jobs} == set(waiting)
    assert len(busy.held) == 8


def test_a_full_worker_is_told_to_load_ahead_and_one_that_is_to_drain_to_leave(rig: PoolRig) -> None:
    revision = rig.add_adapter("cold")
    with rig.scheduler(), ScriptedWorker(rig, hold) as worker:
        rig.submit(8)
        eventually(lambda: len(worker.held) == 8)
        cold = rig.submit(adapter="cold")
        prefetch: Any = eventually(lambda: worker.commands("prefetch"))
        assert prefetch[0].revisions == (revision,)

        rig.database.run(lambda c: WorkerRepository(c).set_state(worker.incarnation, "draining"))
        eventually(lambda: worker.is_draining)
        with ScriptedWorker(rig) as other:
            rig.wait_for(JobState.SUCCEEDED, *cold, *rig.submit(2))

    assert (len(worker.jobs), len(other.jobs)) == (8, 3)

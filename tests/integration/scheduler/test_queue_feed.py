"""The backlog in memory against the ledger it is read from."""

from __future__ import annotations

from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from db.records import JobAttempt, NewJob
from db.repositories.admission import AdmissionRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from scheduler.catalogue import Catalogue
from scheduler.instructions import Instructions, Pauses
from scheduler.leader_context import LeaderContext
from scheduler.queue_feed import QueueFeed
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import LIMITS


def test_a_job_that_came_back_unheard_is_found_at_the_second_look(rig: PoolRig) -> None:
    feed, context = _feed(rig)
    job = _admit(rig)
    other = _admit(rig)
    feed.fill()
    feed.backlog.take(job.job_id)
    context.transact(lambda c: LeaseRepository(c).lease(rig.pool, "w", [job.job_id], term=context.term))
    feed.verify()
    feed.verify()
    assert not feed.has_more, "a leased job is not missing"
    context.transact(lambda c: LeaseRepository(c).release("w", [JobAttempt(job.job_id, 1)]))

    feed.verify()
    assert not feed.has_more, "at the first look, the word of it may be on its way"
    feed.verify()
    feed.fill()

    assert job.job_id in feed.backlog
    assert other.job_id in feed.backlog
    assert feed.depth() == 2


def test_a_job_whose_word_came_between_two_looks_is_no_alarm(rig: PoolRig) -> None:
    feed, _ = _feed(rig)
    job = _admit(rig)
    feed.fill()
    feed.backlog.take(job.job_id)

    feed.verify()
    assert feed.put_back([job.job_id]) == 1
    feed.verify()

    assert not feed.has_more
    assert feed.put_back([job.job_id]) == 0, "it waits already"


def test_a_tenants_flood_leaves_room_for_others_and_comes_in_its_order(
    rig: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, jobs in (("MAX_JOBS_IN_MEMORY", 12), ("WINDOW_JOBS", 4), ("LOOK_AT_JOBS", 8)):
        monkeypatch.setattr(f"scheduler.queue_feed.{name}", jobs)
    feed, context = _feed(rig)
    flood = [job.job_id for job in _admit_all(rig, "flood", 30)]
    others = [job.job_id for job in _admit_all(rig, "other", 3)]
    more = [job.job_id for job in _admit_all(rig, "flood", 2)]

    for _ in range(9):
        feed.fill()

    assert [job_id for job_id in flood if job_id in feed.backlog] == flood[:6], "half of what there is"
    assert all(job_id in feed.backlog for job_id in others)
    assert feed.depth() == 35
    assert feed.depths(["flood", "other"]) == {"flood": 32, "other": 3}

    taken, at_most = [], 0
    while len(feed.backlog):
        at_most = max(at_most, len(feed.backlog))
        first = min(feed.backlog.jobs(), key=lambda job: (job.tenant != "other", job.admit_seq)).job_id
        context.transact(partial(_lease, rig.pool, first, context.term))
        feed.take(first)
        taken.append(first)
        for _ in range(3):
            feed.fill()

    assert taken == [*others, *flood, *more]
    assert at_most <= 12
    assert not feed.has_more
    assert feed.depth() == 0


def test_paused_jobs_count_for_the_bound_of_memory(rig: PoolRig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, jobs in (("MAX_JOBS_IN_MEMORY", 8), ("WINDOW_JOBS", 4)):
        monkeypatch.setattr(f"scheduler.queue_feed.{name}", jobs)
    feed, _ = _feed(rig)
    feed._instructions.pauses = Pauses(tenants=frozenset({"flood"}))
    flood = _admit_all(rig, "flood", 10)
    [other] = _admit_all(rig, "other", 1)

    for _ in range(5):
        feed.fill()

    assert [job.job_id in feed for job in flood] == [True] * 4 + [False] * 6
    assert other.job_id in feed.backlog
    assert feed.depth() == 11


def _feed(rig: PoolRig) -> tuple[QueueFeed, LeaderContext]:
    term = rig.database.run(lambda c: TermRepository(c).take(rig.pool, "test", 60.0))
    assert term is not None
    rig.database.run(lambda c: WorkerRepository(c).register("w", rig.pool, "host", LIMITS, 60.0))
    ledger = rig.database.run(lambda c: TermRepository(c).ledger_id())
    context = LeaderContext(rig.pool, term, ledger, rig.database, rig.redis)
    instructions = Instructions(rig.pool, lambda: 100.0)
    return QueueFeed(context, Catalogue(rig.pool), instructions, lambda: 100.0), context


def _admit(rig: PoolRig) -> NewJob:
    job = _new_job(rig)
    rig.database.run(lambda c: AdmissionRepository(c).admit(rig.pool, [job]))
    return job


def _admit_all(rig: PoolRig, tenant: str, num_jobs: int) -> list[NewJob]:
    jobs = [_new_job(rig, tenant=tenant) for _ in range(num_jobs)]
    rig.database.run(lambda c: AdmissionRepository(c).admit(rig.pool, jobs))
    return jobs


def _new_job(rig: PoolRig, **fields: str) -> NewJob:
    envelope = rig.envelope(**fields)
    return NewJob(
        job_id=envelope.job_id,
        submission_id=uuid4(),
        spec=envelope.spec,
        payload_sha256=envelope.payload_sha256,
        model=rig.info.model_name,
        reply_to=None,
        revision=None,
        est_prompt_tokens=2,
        waited_ms=0.0,
    )


def _lease(pool: str, job_id: UUID, term: int, connection: Connection) -> None:
    LeaseRepository(connection).lease(pool, "w", [job_id], term=term)

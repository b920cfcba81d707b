"""The backlog in memory against the ledger it is read from."""

from __future__ import annotations

from uuid import uuid4

from db.records import JobAttempt, NewJob
from db.repositories.admission import AdmissionRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from scheduler.catalogue import Catalogue
from scheduler.instructions import Instructions
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


def _feed(rig: PoolRig) -> tuple[QueueFeed, LeaderContext]:
    term = rig.database.run(lambda c: TermRepository(c).take(rig.pool, "test", 60.0))
    assert term is not None
    rig.database.run(lambda c: WorkerRepository(c).register("w", rig.pool, "host", LIMITS, 60.0))
    ledger = rig.database.run(lambda c: TermRepository(c).ledger_id())
    context = LeaderContext(rig.pool, term, ledger, rig.database, rig.redis)
    instructions = Instructions(rig.pool, lambda: 100.0)
    return QueueFeed(context, Catalogue(rig.pool), instructions, lambda: 100.0), context


def _admit(rig: PoolRig) -> NewJob:
    envelope = rig.envelope()
    job = NewJob(
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
    rig.database.run(lambda c: AdmissionRepository(c).admit(rig.pool, [job]))
    return job

"""The backlog in memory against the ledger it is read from."""

from __future__ import annotations

from uuid import uuid4

from db.records import JobAttempt, NewJob
from db.repositories.admission import AdmissionRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from scheduler.catalogue import Catalogue
from scheduler.office import Office
from scheduler.queue_feed import QueueFeed
from tests.integration.scheduler.scripted_worker import LIMITS
from tests.integration.scheduler.yard import Yard


def test_a_job_that_came_back_unheard_is_found_at_the_second_look(yard: Yard) -> None:
    feed, office = _feed(yard)
    job = _admit(yard)
    other = _admit(yard)
    feed.fill()
    feed.backlog.take(job.job_id)
    office.transact(lambda c: LeaseRepository(c).lease(yard.pool, "w", [job.job_id], term=office.term))
    feed.verify()
    feed.verify()
    assert not feed.has_more, "a leased job is not missing"
    office.transact(lambda c: LeaseRepository(c).release("w", [JobAttempt(job.job_id, 1)]))

    feed.verify()
    assert not feed.has_more, "at the first look, the word of it may be on its way"
    feed.verify()
    feed.fill()

    assert job.job_id in feed.backlog
    assert other.job_id in feed.backlog
    assert feed.depth() == 2


def test_a_job_whose_word_came_between_two_looks_is_no_alarm(yard: Yard) -> None:
    feed, _ = _feed(yard)
    job = _admit(yard)
    feed.fill()
    feed.backlog.take(job.job_id)

    feed.verify()
    assert feed.put_back([job.job_id]) == 1
    feed.verify()

    assert not feed.has_more
    assert feed.put_back([job.job_id]) == 0, "it waits already"


def _feed(yard: Yard) -> tuple[QueueFeed, Office]:
    term = yard.database.run(lambda c: TermRepository(c).take(yard.pool, "test", 60.0))
    assert term is not None
    yard.database.run(lambda c: WorkerRepository(c).register("w", yard.pool, "host", LIMITS, 60.0))
    office = Office(yard.pool, term, yard.database, yard.redis)
    return QueueFeed(office, Catalogue(yard.pool), lambda: 100.0), office


def _admit(yard: Yard) -> NewJob:
    envelope = yard.envelope()
    job = NewJob(
        job_id=envelope.job_id,
        submission_id=uuid4(),
        spec=envelope.spec,
        payload_sha256=envelope.payload_sha256,
        reply_to=None,
        revision=None,
        est_prompt_tokens=2,
        waited_ms=0.0,
    )
    yard.database.run(lambda c: AdmissionRepository(c).admit(yard.pool, [job]))
    return job

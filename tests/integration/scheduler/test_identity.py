"""Whose job a key is, and which ledger a pool in Redis belongs to."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from db.repositories.terms import TermRepository
from lorayard import Client, IdempotencyConflict, ResultExpired
from lorayard.contract.errors import JobFailed
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.states import JobState
from scheduler.adoption import adopt
from tests.integration.scheduler.pool_rig import PoolRig, RunningScheduler
from tests.polling import eventually


def test_a_key_of_one_pool_is_a_conflict_in_another_of_the_same_model(rig: PoolRig) -> None:
    with rig.scheduler(), rig.scheduler(generation_config="none") as beside:
        pool = beside.scheduler.info.pool
        eventually(lambda: rig.redis.hlen(POOLS_KEY) == 2, what="both pools")
        with Client(rig.redis_url, model=rig.pool) as here, Client(rig.redis_url, model=pool) as there:
            first = here.submit("hello", idempotency_key="order-7", confirm="ledger")
            again = here.submit("hello", idempotency_key="order-7", confirm="ledger")
            with pytest.raises(
                IdempotencyConflict,
                match=rf"job {first.id} in pool {rig.pool}, and this is pool {pool}: take",
            ):
                there.submit("hello", idempotency_key="order-7", confirm="ledger")

    assert again.id == first.id
    assert rig.counts() == {"queued": 1}


def test_a_repeat_whose_job_has_left_is_told_so_and_does_not_run_again(rig: PoolRig) -> None:
    with rig.scheduler():
        eventually(lambda: rig.redis.hlen(POOLS_KEY), what="the pool")
        with Client(rig.redis_url) as client:
            first = client.submit("hello", idempotency_key="order-7", confirm="ledger")
            first.cancel()
            with pytest.raises(JobFailed):
                first.result(20)
        rig.sql("DELETE FROM jobs")
        with Client(rig.redis_url) as client, Client(rig.redis_url) as another:
            with pytest.raises(ResultExpired, match=f"job {first.id} has ended and left the ledger"):
                client.submit("hello", idempotency_key="order-7", confirm="ledger")
            with pytest.raises(ResultExpired):
                client.submit("hello", idempotency_key="order-7").result(20)
            with pytest.raises(ResultExpired):
                another.job(first.id).result(20)
            with pytest.raises(ResultExpired):
                another.job(first.id).cancel()

    assert rig.counts() == {}


def other_ledger(rig: PoolRig) -> UUID:
    """Make the rig's ledger another one, as far as Redis can tell; returns its id."""
    rig.sql("UPDATE ledger_id SET id = gen_random_uuid()")
    return rig.database.run(lambda c: TermRepository(c).ledger_id())


def has_given_up(scheduler: RunningScheduler) -> bool:
    return not scheduler.is_running


def test_a_second_ledger_on_one_redis_is_refused_by_name_until_it_adopts_the_pool(rig: PoolRig) -> None:
    first = rig.database.run(lambda c: TermRepository(c).ledger_id())
    with rig.scheduler() as leader:
        rig.wait_for(JobState.QUEUED, *rig.submit())
        eventually(lambda: rig.redis.hexists(rig.keys.admission, "published_ms"), what="its first word")
        stranger = adopt(rig.redis, rig.pool, uuid4())
        assert (stranger.before, stranger.is_led) == (str(first), True)
        assert leader.is_running
    second = other_ledger(rig)
    (waiting,) = rig.submit()

    with rig.scheduler() as refused:
        eventually(lambda: has_given_up(refused), what="its end")

    assert refused.served is False
    assert rig.get(waiting) is None
    assert rig.redis.get(rig.keys.ledger) == str(first).encode()

    rig.redis.hset(rig.keys.admission, "published_ms", 0)
    adopted = adopt(rig.redis, rig.pool, second)
    assert (adopted.before, adopted.is_led) == (str(first), False)
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, waiting)


def test_a_flushed_redis_is_adopted_and_a_pool_handed_over_is_let_go(rig: PoolRig) -> None:
    with rig.scheduler() as leader:
        rig.wait_for(JobState.QUEUED, *rig.submit())
        before = rig.redis.get(rig.keys.ledger)
        rig.redis.flushdb()
        eventually(lambda: rig.redis.get(rig.keys.ledger) == before, what="the ledger's id")
        rig.wait_for(JobState.QUEUED, *rig.submit())

        rig.redis.set(rig.keys.ledger, str(uuid4()))
        eventually(lambda: has_given_up(leader), what="its end")

    assert leader.served is False

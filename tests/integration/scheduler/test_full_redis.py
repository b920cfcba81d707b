"""A Redis at its memory limit drains, with every answer given; one that would evict jobs is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import reply_key
from lorayard.contract.states import JobState
from scheduler.adoption import adopt
from tests.integration.scheduler.pool_rig import CLIENT, PoolRig
from tests.integration.scheduler.scripted_worker import LIMITS, ScriptedWorker
from tests.polling import eventually


@contextmanager
def without_room(redis: Redis) -> Iterator[None]:
    """Have the server refuse, whatever is deleted, all that may need memory."""
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            redis.set("anything", "")
        yield
    finally:
        redis.config_set("maxmemory", 0)


def test_what_waits_is_admitted_and_answered_by_a_leader_that_starts_at_the_limit(rig: PoolRig) -> None:
    first, again, other = (rig.envelope(idempotency_key="k", prompt=one) for one in ("a", "a", "b"))
    receipt = rig.envelope(confirm_ledger=True)
    late = rig.envelope(deadline_s=0.001)
    rig.redis.xadd(rig.keys.jobs("normal"), {"body": b"nonsense"})
    waiting = rig.submit(600)
    rig.send(first, again, other, receipt, late)
    asked = rig.ask("lookup", uuid4())

    with ExitStack() as stack:
        with without_room(rig.redis):
            stack.enter_context(rig.scheduler())
            rig.wait_for(JobState.QUEUED, *waiting, first.job_id, receipt.job_id)
            eventually(rig.intake_is_empty)
            repeat = rig.reply(submission_id=again.submission_id)
            conflict = rig.reply(submission_id=other.submission_id)
            received = rig.reply(submission_id=receipt.submission_id)
            unknown = rig.reply(request_id=asked)
            figures = rig.redis.hget(rig.keys.admission, "published_ms")
            replies_end_in_s = rig.redis.ttl(reply_key(CLIENT))
        expired = rig.reply(job_id=late.job_id)

    assert (repeat.state, received.state) == (JobState.QUEUED, JobState.QUEUED)
    assert conflict.conflict is not None
    assert expired.state is JobState.EXPIRED
    assert unknown.state is None
    assert figures is not None
    assert replies_end_in_s > 0


def test_a_leader_reads_on_while_its_dispatches_are_refused_and_dispatches_once_there_is_room(
    rig: PoolRig,
) -> None:
    incarnation = uuid4().hex
    early = rig.submit(4)
    with capture_logs() as logs, rig.scheduler():
        rig.wait_for(JobState.QUEUED, *early)
        rest = [rig.envelope() for _ in range(40)]
        with rig.redis.pipeline() as pipeline:  # at once, before the leader has read any
            for envelope in rest:
                pipeline.xadd(rig.keys.jobs("normal"), envelope.to_entry())
            pipeline.config_set("maxmemory", 1)
            pipeline.execute()
        with without_room(rig.redis):
            rig.database.run(
                lambda c: WorkerRepository(c).register(incarnation, rig.pool, "silent", LIMITS, 2.0)
            )
            eventually(lambda: any(line["event"] == "micro_batches.not_published" for line in logs))
            eventually(rig.intake_is_empty)
            rig.wait_for(JobState.QUEUED, *early, *(one.job_id for one in rest))
        with ScriptedWorker(rig):
            rig.wait_for(JobState.SUCCEEDED, *early, *(one.job_id for one in rest))

    assert rig.sql("SELECT max(strikes) FROM jobs")[0][0] == 0


def test_a_pool_is_adopted_at_the_limit_too(rig: PoolRig) -> None:
    before, ours = uuid4(), uuid4()
    rig.redis.set(rig.keys.ledger, str(before))
    with without_room(rig.redis):
        found = adopt(rig.redis, rig.pool, ours)

    assert found == (str(before), False)
    assert rig.redis.get(rig.keys.ledger) == str(ours).encode()


def test_no_leader_serves_a_redis_that_may_evict_jobs(rig: PoolRig) -> None:
    (job_id,) = rig.submit()
    rig.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with capture_logs() as logs, rig.scheduler() as running:
            eventually(lambda: not running.is_running)
    finally:
        rig.redis.config_set("maxmemory-policy", "noeviction")

    assert running.served is False
    assert any("set maxmemory-policy noeviction" in line.get("error", "") for line in logs)
    assert rig.get(job_id) is None

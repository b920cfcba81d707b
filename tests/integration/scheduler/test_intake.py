"""The door: what is submitted is admitted once, whatever breaks in between."""

from __future__ import annotations

from typing import Any

import pytest

from db.repositories.adapters import AdapterRepository
from db.repositories.tenants import TenantRepository
from lorayard.contract.keys import INTAKE_GROUP
from lorayard.contract.states import JobState
from scheduler.streams import CONSUMER
from tests.integration.scheduler.yard import Yard
from tests.polling import eventually


def test_jobs_submitted_before_any_scheduler_ran_are_admitted(yard: Yard) -> None:
    job_ids = yard.submit(700)

    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, *job_ids)
        eventually(yard.intake_is_empty)


def test_entries_that_a_dead_leader_had_read_are_admitted_by_the_next(yard: Yard) -> None:
    (job_id,) = yard.submit()
    stream = yard.keys.jobs("normal")
    yard.redis.xgroup_create(stream, INTAKE_GROUP, id="0")
    yard.redis.xreadgroup(INTAKE_GROUP, "somebody-else", {stream: ">"})

    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, job_id)
        eventually(yard.intake_is_empty)


def test_entries_committed_but_not_acknowledged_are_not_admitted_twice(yard: Yard) -> None:
    envelope = yard.envelope()
    with yard.scheduler():
        yard.send(envelope)
        yard.wait_for(JobState.QUEUED, envelope.job_id)
        eventually(yard.intake_is_empty)

        # The same bytes once more are what a crash between commit and acknowledgement leaves behind.
        yard.send(envelope)
        eventually(yard.intake_is_empty)

    assert yard.counts() == {"queued": 1}


def test_a_zombie_that_reads_an_entry_does_not_keep_it(yard: Yard) -> None:
    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, *yard.submit())
        stream = yard.keys.jobs("normal")
        envelope = yard.envelope()
        # Appended and read in one transaction, before the leader can have it.
        with yard.redis.pipeline(transaction=True) as pipeline:
            pipeline.xadd(stream, envelope.to_entry())
            pipeline.xreadgroup(INTAKE_GROUP, CONSUMER, {stream: ">"})
            pipeline.execute()

        yard.wait_for(JobState.QUEUED, envelope.job_id)


def test_a_malformed_entry_is_kept_aside_and_its_neighbours_are_admitted(yard: Yard) -> None:
    stream = yard.keys.jobs("normal")
    yard.redis.xadd(stream, {"body": b'{"v": 1, "job_id": "no uuid"}'})
    yard.redis.xadd(stream, {"other": b"\x00\xff"})
    (job_id,) = yard.submit()

    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, job_id)
        eventually(lambda: yard.redis.xlen(stream) == 0)

    rejects = yard.sql("SELECT stream, body, error FROM intake_rejects ORDER BY entry_id")
    assert [bytes(row.body) for row in rejects] == [b'{"v": 1, "job_id": "no uuid"}', b"other=\x00\xff"]
    assert "job_id" in rejects[0].error
    assert rejects[1].stream == stream


def test_a_job_that_postgres_refuses_is_put_aside_and_its_block_is_admitted(yard: Yard) -> None:
    envelopes = [yard.envelope() for _ in range(9)]
    # A client that does not validate: the ledger's text takes no NUL.
    culprit = yard.envelope(prompt="culprit").model_copy(update={"payload_sha256": "nul \x00"})
    yard.send(*envelopes[:5], culprit, *envelopes[5:])

    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, *(envelope.job_id for envelope in envelopes))
        eventually(yard.intake_is_empty)

    assert [row.n for row in yard.sql("SELECT count(*) AS n FROM intake_rejects")] == [1]
    assert yard.get(culprit.job_id) is None


def test_destroyed_groups_and_a_lost_redis_are_recovered_from(yard: Yard) -> None:
    with yard.scheduler():
        yard.wait_for(JobState.QUEUED, *yard.submit())

        yard.redis.xgroup_destroy(yard.keys.jobs("normal"), INTAKE_GROUP)
        yard.wait_for(JobState.QUEUED, *yard.submit())

        yard.redis.flushdb()
        yard.wait_for(JobState.QUEUED, *yard.submit())
        eventually(yard.intake_is_empty)


def test_the_admission_is_announced_to_who_wants_the_ledgers_receipt(yard: Yard) -> None:
    envelope = yard.envelope(confirm_ledger=True)

    with yard.scheduler():
        yard.send(envelope)
        reply = yard.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.QUEUED


def test_a_repeated_submission_hears_of_the_first_job_and_another_payload_of_the_conflict(
    yard: Yard,
) -> None:
    first = yard.envelope(idempotency_key="k")
    again = yard.envelope(idempotency_key="k")
    other = yard.envelope(idempotency_key="k", prompt="something else")

    with yard.scheduler():
        yard.send(first, again, other)
        repeat = yard.reply(submission_id=again.submission_id)
        conflict = yard.reply(submission_id=other.submission_id)

    assert repeat.state is JobState.QUEUED
    assert conflict.conflict is not None
    assert conflict.conflict.code == "idempotency_conflict"
    assert yard.counts() == {"queued": 1}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"adapter": "nobody"}, "unknown_adapter"),
        ({"adapter": "removed"}, "unknown_adapter"),
        ({"adapter": "broken"}, "adapter_quarantined"),
        ({"prompt": "x" * 500_000}, "prompt_too_long"),
        ({"tenant": "stranger"}, "unknown_tenant"),
    ],
)
def test_what_cannot_be_served_is_born_rejected_with_the_reason(
    yard: Yard, fields: dict[str, Any], code: str
) -> None:
    yard.database.run(lambda c: TenantRepository(c).ensure("default"))
    yard.add_adapter("removed")
    yard.add_adapter("broken")
    yard.database.run(lambda c: AdapterRepository(c).remove(yard.pool, "removed"))
    yard.database.run(lambda c: AdapterRepository(c).quarantine(yard.pool, "sha256:broken", "torn"))
    envelope = yard.envelope(callback_url="https://example.com/hook", **fields)

    with yard.scheduler(auto_tenants=False):
        yard.send(envelope)
        reply = yard.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.REJECTED
    assert reply.result is not None
    assert reply.result.error is not None
    assert reply.result.error.code == code
    assert [row.event_type for row in yard.sql("SELECT event_type FROM webhook_deliveries")] == [
        "job.rejected"
    ]


def test_a_job_is_pinned_to_the_revision_that_is_current_at_admission(yard: Yard) -> None:
    with yard.scheduler():
        yard.add_adapter("sql", "sha256:one")
        (first,) = yard.submit(adapter="sql")
        yard.wait_for(JobState.QUEUED, first)
        yard.add_adapter("sql", "sha256:two")
        (second,) = yard.submit(adapter="sql")
        yard.wait_for(JobState.QUEUED, second)

    rows = yard.sql("SELECT job_id, revision FROM jobs")
    assert {row.job_id: row.revision for row in rows} == {first: "sha256:one", second: "sha256:two"}


def test_a_cancel_that_came_before_its_job_is_honoured(yard: Yard) -> None:
    envelope = yard.envelope()
    with yard.scheduler():
        request_id = yard.ask("cancel", envelope.job_id)
        assert yard.reply(request_id=request_id).state is None

        yard.send(envelope)
        reply = yard.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.CANCELLED


def test_age_in_the_stream_counts_towards_the_deadline(yard: Yard) -> None:
    stream = yard.keys.jobs("normal")
    envelope = yard.envelope(deadline_s=5.0)
    seconds, _ = yard.redis.time()
    yard.redis.xadd(stream, envelope.to_entry(), id=f"{(seconds - 60) * 1000}-0")

    with yard.scheduler():
        assert yard.reply(job_id=envelope.job_id).state is JobState.EXPIRED

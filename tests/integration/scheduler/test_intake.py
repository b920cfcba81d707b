"""The door: what is submitted is admitted once, whatever breaks in between."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from db.repositories.adapters import AdapterRepository
from db.repositories.tenants import TenantRepository
from lorayard.contract.keys import INTAKE_GROUP
from lorayard.contract.states import JobState
from scheduler.streams import CONSUMER
from tests.integration.scheduler.pool_rig import PoolRig
from tests.polling import eventually


def test_jobs_submitted_before_any_scheduler_ran_are_admitted(rig: PoolRig) -> None:
    job_ids = rig.submit(700)

    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *job_ids)
        eventually(rig.intake_is_empty)


def test_entries_that_a_dead_leader_had_read_are_admitted_by_the_next(rig: PoolRig) -> None:
    (job_id,) = rig.submit()
    stream = rig.keys.jobs("normal")
    rig.redis.xgroup_create(stream, INTAKE_GROUP, id="0")
    rig.redis.xreadgroup(INTAKE_GROUP, "somebody-else", {stream: ">"})

    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, job_id)
        eventually(rig.intake_is_empty)


def test_entries_committed_but_not_acknowledged_are_not_admitted_twice(rig: PoolRig) -> None:
    envelope = rig.envelope()
    with rig.scheduler():
        rig.send(envelope)
        rig.wait_for(JobState.QUEUED, envelope.job_id)
        eventually(rig.intake_is_empty)

        # The same bytes once more are what a crash between commit and acknowledgement leaves behind.
        rig.send(envelope)
        eventually(rig.intake_is_empty)

    assert rig.counts() == {"queued": 1}


def test_a_zombie_that_reads_an_entry_does_not_keep_it(rig: PoolRig) -> None:
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *rig.submit())
        stream = rig.keys.jobs("normal")
        envelope = rig.envelope()
        # Appended and read in one transaction, before the leader can have it.
        with rig.redis.pipeline(transaction=True) as pipeline:
            pipeline.xadd(stream, envelope.to_entry())
            pipeline.xreadgroup(INTAKE_GROUP, CONSUMER, {stream: ">"})
            pipeline.execute()

        rig.wait_for(JobState.QUEUED, envelope.job_id)


def test_a_malformed_entry_is_kept_aside_and_its_neighbours_are_admitted(rig: PoolRig) -> None:
    stream = rig.keys.jobs("normal")
    rig.redis.xadd(stream, {"body": b'{"v": 1, "job_id": "no uuid"}'})
    rig.redis.xadd(stream, {"other": b"\x00\xff"})
    (job_id,) = rig.submit()

    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, job_id)
        eventually(lambda: rig.redis.xlen(stream) == 0)

    rejects = rig.sql("SELECT stream, body, error FROM intake_rejects ORDER BY entry_id")
    assert [bytes(row.body) for row in rejects] == [b'{"v": 1, "job_id": "no uuid"}', b"other=\x00\xff"]
    assert "job_id" in rejects[0].error
    assert rejects[1].stream == stream


def test_what_is_put_aside_is_logged_without_what_its_user_wrote(rig: PoolRig) -> None:
    refused = rig.envelope(prompt="a secret", idempotency_key="k").model_copy(
        update={"payload_sha256": "nul \x00"}
    )
    rig.send(refused)
    unreadable = refused.model_dump_json().replace('"a secret"', '{"a secret": 1}')
    rig.redis.xadd(rig.keys.jobs("normal"), {"body": unreadable})

    with capture_logs() as log, rig.scheduler():
        eventually(rig.intake_is_empty)
        eventually(lambda: len(rig.sql("SELECT 1 FROM intake_rejects")) == 2)

    rejects = rig.sql("SELECT error FROM intake_rejects")
    assert "a secret" not in repr(log) + repr([row.error for row in rejects])


def test_a_column_of_a_later_release_costs_no_submission(rig: PoolRig) -> None:
    rig.database.run(lambda c: c.execute(text("ALTER TABLE job_inputs ADD COLUMN later integer NOT NULL")))
    (job_id,) = rig.submit()
    with capture_logs() as log, rig.scheduler():
        eventually(lambda: any(line["event"] == "leader.failed" for line in log))
        rig.database.run(lambda c: c.execute(text("ALTER TABLE job_inputs DROP COLUMN later")))

        rig.wait_for(JobState.QUEUED, job_id)

    assert rig.sql("SELECT 1 FROM intake_rejects") == []


def test_a_job_that_postgres_refuses_is_put_aside_and_its_block_is_admitted(rig: PoolRig) -> None:
    envelopes = [rig.envelope() for _ in range(9)]
    # A client that does not validate: the ledger's text takes no NUL.
    culprit = rig.envelope(prompt="culprit", idempotency_key="k").model_copy(
        update={"payload_sha256": "nul \x00"}
    )
    rig.send(*envelopes[:5], culprit, *envelopes[5:])

    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *(envelope.job_id for envelope in envelopes))
        eventually(rig.intake_is_empty)

    assert [row.n for row in rig.sql("SELECT count(*) AS n FROM intake_rejects")] == [1]
    assert rig.get(culprit.job_id) is None


def test_destroyed_groups_and_a_lost_redis_are_recovered_from(rig: PoolRig) -> None:
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *rig.submit())

        rig.redis.xgroup_destroy(rig.keys.jobs("normal"), INTAKE_GROUP)
        rig.wait_for(JobState.QUEUED, *rig.submit())

        rig.redis.flushdb()
        rig.wait_for(JobState.QUEUED, *rig.submit())
        eventually(rig.intake_is_empty)


def test_the_admission_is_announced_to_who_wants_the_ledgers_receipt(rig: PoolRig) -> None:
    envelope = rig.envelope(confirm_ledger=True)

    with rig.scheduler():
        rig.send(envelope)
        reply = rig.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.QUEUED


def test_a_repeated_submission_hears_of_the_first_job_and_another_payload_of_the_conflict(
    rig: PoolRig,
) -> None:
    first = rig.envelope(idempotency_key="k")
    again = rig.envelope(idempotency_key="k")
    other = rig.envelope(idempotency_key="k", prompt="something else")

    with rig.scheduler():
        rig.send(first, again, other)
        repeat = rig.reply(submission_id=again.submission_id)
        conflict = rig.reply(submission_id=other.submission_id)

    assert repeat.state is JobState.QUEUED
    assert conflict.conflict is not None
    assert conflict.conflict.code == "idempotency_conflict"
    assert rig.counts() == {"queued": 1}


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
    rig: PoolRig, fields: dict[str, Any], code: str
) -> None:
    rig.database.run(lambda c: TenantRepository(c).ensure("default"))
    rig.add_adapter("removed")
    rig.add_adapter("broken")
    rig.database.run(lambda c: AdapterRepository(c).remove(rig.pool, "removed"))
    rig.database.run(lambda c: AdapterRepository(c).quarantine(rig.pool, "sha256:broken", "torn"))
    envelope = rig.envelope(callback_url="https://example.com/hook", **fields)

    with rig.scheduler(auto_tenants=False):
        rig.send(envelope)
        reply = rig.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.REJECTED
    assert reply.result is not None
    assert reply.result.error is not None
    assert reply.result.error.code == code
    assert [row.event_type for row in rig.sql("SELECT event_type FROM webhook_deliveries")] == [
        "job.rejected"
    ]


def test_a_job_is_pinned_to_the_revision_that_is_current_at_admission(rig: PoolRig) -> None:
    with rig.scheduler():
        rig.add_adapter("sql", "sha256:one")
        (first,) = rig.submit(adapter="sql")
        rig.wait_for(JobState.QUEUED, first)
        rig.add_adapter("sql", "sha256:two")
        (second,) = rig.submit(adapter="sql")
        rig.wait_for(JobState.QUEUED, second)

    rows = rig.sql("SELECT job_id, revision FROM jobs")
    assert {row.job_id: row.revision for row in rows} == {first: "sha256:one", second: "sha256:two"}


def test_a_cancel_that_came_before_its_job_is_honoured(rig: PoolRig) -> None:
    envelope = rig.envelope()
    with rig.scheduler():
        request_id = rig.ask("cancel", envelope.job_id)
        assert rig.reply(request_id=request_id).state is None

        rig.send(envelope)
        reply = rig.reply(submission_id=envelope.submission_id)

    assert reply.state is JobState.CANCELLED


def test_age_in_the_stream_counts_towards_the_deadline(rig: PoolRig) -> None:
    stream = rig.keys.jobs("normal")
    envelope = rig.envelope(deadline_s=5.0)
    seconds, _ = rig.redis.time()
    rig.redis.xadd(stream, envelope.to_entry(), id=f"{(seconds - 60) * 1000}-0")

    with rig.scheduler():
        assert rig.reply(job_id=envelope.job_id).state is JobState.EXPIRED


def test_a_value_out_of_bounds_is_rejected_with_the_reason_and_its_producer_hears_it(rig: PoolRig) -> None:
    envelope = rig.envelope(callback_url="https://example.com/hook", idempotency_key="k")
    of_later = envelope.spec.model_copy(update={"max_tokens": 2_000_000})
    of_nobody = rig.envelope(tenant="acme")

    with rig.scheduler():
        rig.send(
            envelope.model_copy(update={"spec": of_later}),
            of_nobody.model_copy(update={"spec": of_nobody.spec.model_copy(update={"tenant": "a b"})}),
        )
        rejected = rig.reply(submission_id=envelope.submission_id)
        put_aside = rig.reply(submission_id=of_nobody.submission_id)

    for reply, code, reason in (
        (rejected, "unsupported_value", "max_tokens: Input should be less than or equal to 1000000"),
        (put_aside, "unreadable_job", "spec.tenant"),
    ):
        assert reply.state is JobState.REJECTED
        assert reply.result is not None
        assert reply.result.error is not None
        assert reply.result.error.code == code
        assert reason in reply.result.error.message
    assert rig.counts() == {"rejected": 1}
    assert [row.event_type for row in rig.sql("SELECT event_type FROM webhook_deliveries")] == [
        "job.rejected"
    ]
    assert [row.n for row in rig.sql("SELECT count(*) AS n FROM intake_rejects")] == [1]

"""What has ended long ago leaves in batches, keys later; what is waited for stays, and so does usage."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from db.records import DeletedBatch, RejectedEntry
from db.repositories.admission import AdmissionRepository
from db.repositories.retention import RetentionRepository
from db.repositories.usage import UsageRepository
from db.repositories.webhooks import WebhookRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import POOL, Ledger, ended, new_job

DAY_S = 86_400.0
HOOK = {"callback_url": "https://example.com/hook"}


def finished(ledger: Ledger, number: int, days_ago: float, **fields: Any) -> list[UUID]:
    """Have jobs run and end so many days ago, one a second."""
    ledger.worker()
    jobs = ledger.lease("w1", *ledger.admitted(number, **fields))
    ledger.finish("w1", *(ended(job, output="x") for job in jobs))
    for second, job in enumerate(jobs):
        ledger.sql(
            "UPDATE jobs SET ended_at = now() - make_interval(secs => :s) WHERE job_id = :id",
            s=days_ago * DAY_S - second,
            id=job.job_id,
        )
    return [job.job_id for job in jobs]


def delete(ledger: Ledger, days: float = 30, limit: int = 100, after: datetime | None = None) -> DeletedBatch:
    done: DeletedBatch = ledger.run(RetentionRepository, "delete_jobs", POOL, days * DAY_S, limit, after)
    return done


def rows(ledger: Ledger, table: str) -> int:
    return int(ledger.sql(f"SELECT count(*) FROM {table}")[0][0])


JOB_TABLES = ("jobs", "job_inputs", "job_outputs", "attempts", "webhook_deliveries")


def test_old_jobs_leave_with_all_that_is_theirs_and_nothing_else_does(ledger: Ledger) -> None:
    finished(ledger, 3, days_ago=31)
    young = finished(ledger, 2, days_ago=29)
    queued = ledger.admitted(2)
    running = ledger.leased()
    usage_before = ledger.run(UsageRepository, "report", "tenant", 3600.0)

    done = delete(ledger)

    assert (done.examined, done.deleted) == (3, 3)
    left = {row.job_id for row in ledger.sql("SELECT job_id FROM jobs")}
    assert left == {*young, *queued, running.job_id}
    assert {table: rows(ledger, table) for table in JOB_TABLES} == {
        "jobs": 5, "job_inputs": 5, "job_outputs": 2, "attempts": 2, "webhook_deliveries": 0
    }  # fmt: skip
    assert ledger.run(UsageRepository, "report", "tenant", 3600.0) == usage_before
    assert usage_before[0].jobs == 5


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.QUEUED, JobState.LEASED}))
def test_a_job_leaves_whatever_its_end_was(ledger: Ledger, state: JobState) -> None:
    (job_id,) = ledger.admitted()
    ledger.sql(
        "UPDATE jobs SET state = :s, ended_at = now() - interval '31 days' WHERE job_id = :id",
        s=state.value,
        id=job_id,
    )

    assert delete(ledger).deleted == 1
    assert rows(ledger, "job_inputs") == 0


def test_a_pending_delivery_keeps_its_job_until_it_has_ended(ledger: Ledger) -> None:
    job_ids = finished(ledger, 3, days_ago=31, **HOOK)
    delivered, dead, waiting = ledger.claim(3)
    ledger.run(WebhookRepository, "delivered", delivered.id, delivered.claim, 204)
    ledger.run(WebhookRepository, "dead", dead.id, dead.claim, 410, "gone")

    assert delete(ledger)[:2] == (3, 2)
    assert {row.job_id for row in ledger.sql("SELECT job_id FROM jobs")} == {waiting.job_id} < set(job_ids)
    assert ledger.get(waiting.job_id).output == "x"

    ledger.run(WebhookRepository, "delivered", waiting.id, waiting.claim, 204)
    assert delete(ledger)[:2] == (1, 1)
    assert {rows(ledger, table) for table in JOB_TABLES} == {0}


def test_a_replay_that_comes_at_the_same_moment_keeps_its_job(ledger: Ledger) -> None:
    """A dead webhook is pending again once the replay commits, so nothing may be deleted past its lock."""
    finished(ledger, 1, days_ago=31, **HOOK)
    (dead,) = ledger.claim(1)
    ledger.run(WebhookRepository, "dead", dead.id, dead.claim, 410, "gone")

    with ledger.database.transaction() as replaying:
        assert WebhookRepository(replaying).replay() == 1
        assert delete(ledger)[:2] == (1, 0)
    assert delete(ledger)[:2] == (1, 0)
    (again,) = ledger.claim(1)

    assert again.result.output == "x"


def test_batches_are_bounded_and_go_by_what_has_to_stay(ledger: Ledger) -> None:
    kept = finished(ledger, 4, days_ago=40, **HOOK)
    gone = finished(ledger, 7, days_ago=35)

    done: list[DeletedBatch] = []
    seen = None
    while not done or done[-1].examined >= 3:
        done.append(delete(ledger, limit=3, after=seen))
        seen = done[-1].reached

    assert [(batch.examined, batch.deleted) for batch in done] == [(3, 0), (3, 2), (3, 3), (2, 2)]
    assert {row.job_id for row in ledger.sql("SELECT job_id FROM jobs")} == set(kept)
    assert gone


def test_jobs_that_ended_at_one_instant_are_looked_at_together(ledger: Ledger) -> None:
    finished(ledger, 5, days_ago=31)
    ledger.sql("UPDATE jobs SET ended_at = now() - interval '31 days'")

    assert delete(ledger, limit=2)[:2] == (5, 5)


def test_a_batch_that_is_broken_off_leaves_everything(ledger: Ledger) -> None:
    finished(ledger, 2, days_ago=31, **HOOK)
    ledger.sql("UPDATE webhook_deliveries SET state = 'delivered'")
    before = {table: rows(ledger, table) for table in JOB_TABLES}

    with ledger.database.transaction() as connection:
        assert RetentionRepository(connection).delete_jobs(POOL, 30 * DAY_S, 100).deleted == 2
        connection.get_transaction().rollback()  # type: ignore[union-attr]

    assert {table: rows(ledger, table) for table in JOB_TABLES} == before
    assert delete(ledger).deleted == 2


def test_other_pools_jobs_are_not_this_leaders_business(ledger: Ledger) -> None:
    finished(ledger, 1, days_ago=31)
    ledger.sql("UPDATE jobs SET pool = 'other'")

    assert delete(ledger).examined == 0


def test_a_name_stays_taken_after_its_job_has_left(ledger: Ledger) -> None:
    job = new_job(idempotency_key="order 7")
    ledger.admit(job)
    ledger.sql("UPDATE jobs SET state = 'expired', ended_at = now() - interval '31 days'")
    assert delete(ledger).deleted == 1

    (again,) = ledger.admit(job)

    assert (again.outcome, again.state) == ("repeat", None)
    assert rows(ledger, "jobs") == 0


def test_intake_rejects_leave_as_well(ledger: Ledger) -> None:
    entries = [RejectedEntry("s", f"{number}-0", b"x", "bad") for number in range(3)]
    ledger.run(AdmissionRepository, "put_aside", POOL, entries)
    ledger.sql("UPDATE intake_rejects SET created_at = now() - interval '31 days' WHERE entry_id <> '2-0'")

    deleted = [ledger.run(RetentionRepository, "delete_rejects", POOL, 30 * DAY_S, 1) for _ in range(3)]

    assert deleted == [1, 1, 0]
    assert [row.entry_id for row in ledger.sql("SELECT entry_id FROM intake_rejects")] == ["2-0"]


def delete_keys(ledger: Ledger, after: datetime | None = None) -> DeletedBatch:
    done: DeletedBatch = ledger.run(RetentionRepository, "delete_keys", POOL, 90 * DAY_S, 2, after)
    return done


def test_keys_leave_by_their_age_but_never_before_their_job(ledger: Ledger) -> None:
    jobs = [new_job(idempotency_key=f"k{number}") for number in range(7)]
    ledger.admit(*jobs)
    ids = [job.job_id for job in jobs]
    for place, job_id in enumerate(ids):
        ledger.sql(
            "UPDATE job_keys SET created_at = now() - make_interval(secs => :s) WHERE job_id = :id",
            s=(80 if place == 6 else 100) * DAY_S - place,
            id=job_id,
        )
    ledger.sql("DELETE FROM jobs WHERE job_id <> ALL(CAST(:kept AS uuid[]))", kept=ids[:2])
    ledger.sql("UPDATE job_keys SET pool = 'pool-2' WHERE job_id = :id", id=ids[2])
    ledger.sql("UPDATE job_keys SET pool = NULL WHERE job_id = :id", id=ids[3])

    first = delete_keys(ledger)
    second = delete_keys(ledger, first.reached)
    third = delete_keys(ledger, second.reached)

    assert [one[:2] for one in (first, second, third)] == [(2, 0), (2, 2), (1, 1)]
    left = {row.job_id for row in ledger.sql("SELECT job_id FROM job_keys")}
    assert left == {*ids[:3], ids[6]}

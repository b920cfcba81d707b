"""Jobs are found, cancelled and ended while they wait, each with its reason and its webhook."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from db.repositories.backlog import BacklogRepository
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import POOL, Ledger, ended

HOOK = "https://example.com/hook"


def test_an_unknown_job_is_none(ledger: Ledger) -> None:
    assert ledger.run(JobRepository, "get", uuid4()) is None
    assert ledger.run(JobRepository, "status", uuid4()) is None


def test_cancelling_a_queued_job_ends_it_with_a_webhook(ledger: Ledger) -> None:
    job_id = ledger.admitted(callback_url=HOOK)[0]

    outcome = ledger.run(JobRepository, "cancel", job_id)

    assert outcome.state == JobState.CANCELLED
    assert outcome.finished.result == ledger.get(job_id)
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.cancelled",)]


def test_cancelling_a_running_job_names_its_worker_and_comes_true_when_it_is_given_back(
    ledger: Ledger,
) -> None:
    job = ledger.leased(ledger.worker(), callback_url=HOOK)

    outcome = ledger.run(JobRepository, "cancel", job.job_id)
    released = ledger.run(LeaseRepository, "release", "w1", [(job.job_id, 1)])

    assert (outcome.state, outcome.finished, outcome.incarnation) == (JobState.LEASED, None, "w1")
    assert released.requeued == ()
    assert [done.state for done in released.finished] == [JobState.CANCELLED]
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.cancelled",)]


def test_a_cancelled_job_of_a_lost_worker_is_not_run_again(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    ledger.run(JobRepository, "cancel", job.job_id)
    ledger.expire_lease("w1")

    lost = ledger.run(LeaseRepository, "lose_worker", "w1")

    assert [done.state for done in lost.finished] == [JobState.CANCELLED]


def test_cancelling_an_ended_job_answers_its_state(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    ledger.finish("w1", ended(job))

    outcome = ledger.run(JobRepository, "cancel", job.job_id)

    assert (outcome.state, outcome.finished, outcome.incarnation) == (JobState.SUCCEEDED, None, None)


def test_a_cancel_during_a_release_is_never_forgotten(ledger: Ledger) -> None:
    ledger.worker()

    for _ in range(20):
        job = ledger.leased("w1")
        with ThreadPoolExecutor(2) as threads:
            threads.submit(ledger.run, JobRepository, "cancel", job.job_id)
            threads.submit(ledger.run, LeaseRepository, "release", "w1", [(job.job_id, 1)])

        assert ledger.state(job.job_id) == JobState.CANCELLED


def test_queued_jobs_past_their_deadline_expire_the_longest_overdue_first(ledger: Ledger) -> None:
    late = ledger.admitted(deadline_s=1.0, waited_ms=2000.0, callback_url=HOOK)[0]
    later = ledger.admitted(deadline_s=1.0, waited_ms=9000.0)[0]
    patient = ledger.admitted(deadline_s=100.0)[0]

    first = ledger.run(JobRepository, "expire_due", POOL, 1)
    second = ledger.run(JobRepository, "expire_due", POOL, 10)

    assert [job.job_id for job in first] == [later]
    assert [(job.job_id, job.result.error.code) for job in second] == [(late, "deadline_passed")]
    assert "no token within 1 s" in second[0].result.error.message
    assert ledger.state(patient) == JobState.QUEUED
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.expired",)]


def test_a_job_whose_deadline_cannot_be_kept_expires_early_and_says_why(ledger: Ledger) -> None:
    infeasible, none, leased = (ledger.admitted(deadline_s=d)[0] for d in (60.0, None, 60.0))
    late = ledger.admitted(deadline_s=1.0, waited_ms=5000.0)[0]
    ledger.lease(ledger.worker(), leased)

    ended = ledger.run(JobRepository, "expire_infeasible", [infeasible, none, leased, late])

    codes = {job.job_id: job.result.error.code for job in ended}
    assert codes == {infeasible: "deadline_infeasible", late: "deadline_passed"}
    assert [ledger.state(job_id) for job_id in (none, leased)] == [JobState.QUEUED, JobState.LEASED]


def test_the_backlog_is_read_past_a_cursor_over_all_classes(ledger: Ledger) -> None:
    expected = [
        ledger.admitted(priority=priority)[0]
        for priority in ("low", "high", "normal", "high", "low", "normal")
    ]

    first = ledger.run(BacklogRepository, "queued_after", POOL, 0, 4)
    rest = ledger.run(BacklogRepository, "queued_after", POOL, first[-1].admit_seq, 4)

    assert [row.job_id for row in first + rest] == expected
    assert [row.priority for row in first] == ["low", "high", "normal", "high"]
    assert ledger.run(BacklogRepository, "queued_after", "other", 0, 4) == []


def test_requeued_jobs_are_read_by_id(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), adapter="sql", est_prompt_tokens=9, max_tokens=4, deadline_s=50.0)
    ledger.run(LeaseRepository, "release", "w1", [(job.job_id, 1)])

    row = ledger.run(BacklogRepository, "pending", [job.job_id, uuid4()])[0]

    assert (row.job_id, row.adapter, row.est_tokens, row.max_tokens) == (job.job_id, "sql", 9, 4)
    assert 40 < row.deadline_in_s <= 50


def test_depth_and_counts_add_up(ledger: Ledger) -> None:
    ledger.admitted(5)
    ledger.leased(ledger.worker())

    assert ledger.run(JobRepository, "depth", POOL) == 5
    counts = ledger.run(JobRepository, "counts", POOL)
    assert (counts[JobState.QUEUED], counts[JobState.LEASED], counts[JobState.DEAD]) == (5, 1, 0)


def test_recent_jobs_come_newest_first_and_can_be_chosen(ledger: Ledger) -> None:
    old, new = ledger.admitted(tenant="a")[0], ledger.admitted(tenant="b")[0]
    ledger.run(JobRepository, "cancel", old)

    def ids(**chosen: object) -> list[object]:
        return [job.job_id for job in ledger.run(JobRepository, "recent", **chosen)]

    assert ids() == [new, old]
    assert ids(limit=1) == [new]
    assert ids(tenant="a") == ids(state=JobState.CANCELLED) == [old]
    assert ids(pool="other") == []


def test_old_cancellations_are_forgotten_unless_their_job_still_runs(ledger: Ledger) -> None:
    running = ledger.leased(ledger.worker())
    for job_id in (running.job_id, ledger.admitted()[0], uuid4()):
        ledger.run(JobRepository, "cancel", job_id)

    assert ledger.run(JobRepository, "forget_cancellations", 3600.0) == 0
    assert ledger.run(JobRepository, "forget_cancellations", 0.0) == 2
    assert ledger.sql("SELECT job_id FROM cancellations") == [(running.job_id,)]

"""When a waiting client asks for a job, and what it makes of the answers."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from lorayard.client.tracked_job import (
    FIRST_SILENCE_S,
    MAX_SILENCE_S,
    UNKNOWN_GRACE_S,
    IntakePlace,
    TrackedJob,
)
from lorayard.client.tracker import JobTracker
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import JobEnvelope, JobReply
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

PLACE = IntakePlace("pool", "normal", b"1-1")


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> JobTracker:
    return JobTracker(clock)


def nothing() -> None:
    """Wake nobody."""


def envelope(job_id: UUID | None = None, *, has_key: bool = False) -> JobEnvelope:
    """Make a submission; one more of a job that is named."""
    spec = JobSpec(prompt="hello", idempotency_key="k" if has_key else None)
    return JobEnvelope(job_id=job_id or uuid4(), submission_id=uuid4(), payload_sha256="", spec=spec)


def submitted(tracker: JobTracker, *, has_key: bool = False) -> tuple[TrackedJob, UUID]:
    """Submit a job on the tracker and wait for it."""
    submission = envelope(has_key=has_key)
    job = tracker.expect(submission)
    tracker.submitted(job, PLACE)
    tracker.await_jobs([(job, nothing)])
    return job, submission.submission_id


def end(job: TrackedJob, state: JobState = JobState.SUCCEEDED, *, omitted: bool = False) -> JobReply:
    """Make the reply that ends a job."""
    result = JobResult(job_id=job.job_id, state=state)
    return JobReply(job_id=job.job_id, state=state, result=result, output_omitted=omitted)


def unknown(job: TrackedJob) -> JobReply:
    """Make the reply of a ledger that knows no such job."""
    return JobReply(job_id=job.job_id, state=None)


def ask_times(tracker: JobTracker, clock: Clock, seconds: float) -> list[float]:
    """List after how many seconds anything is asked."""
    start, times = clock.now, []
    while clock.now - start < seconds:
        if tracker.due_lookups(10):
            times.append(clock.now - start)
        clock.now += 0.25
    return times


def test_a_job_of_another_process_is_asked_for_at_once_and_ever_less(
    tracker: JobTracker, clock: Clock
) -> None:
    tracker.await_jobs([(tracker.track(uuid4()), nothing)])

    assert ask_times(tracker, clock, 8.0) == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5]


def test_a_job_of_ours_is_asked_for_after_silence(tracker: JobTracker, clock: Clock) -> None:
    submitted(tracker)

    assert ask_times(tracker, clock, 5.0) == [FIRST_SILENCE_S, 1.0, 2.0, 4.0]


def test_while_news_flows_a_job_of_ours_is_not_asked_for(tracker: JobTracker, clock: Clock) -> None:
    submitted(tracker)
    other = tracker.track(uuid4())

    for _ in range(40):
        clock.now += FIRST_SILENCE_S / 2
        tracker.apply(end(other))
        assert tracker.due_lookups(10) == []


def test_while_news_flows_a_job_under_a_key_is_asked_for(tracker: JobTracker, clock: Clock) -> None:
    job, _ = submitted(tracker, has_key=True)
    clock.now += FIRST_SILENCE_S
    tracker.apply(end(tracker.track(uuid4())))

    assert tracker.due_lookups(10) == [job]


def test_nobody_is_asked_for_whom_nobody_waits(tracker: JobTracker, clock: Clock) -> None:
    job, _ = submitted(tracker)
    tracker.leave_jobs([(job, nothing)])

    assert ask_times(tracker, clock, 5.0) == []


def test_an_ended_job_is_not_asked_for(tracker: JobTracker, clock: Clock) -> None:
    job, _ = submitted(tracker)
    tracker.apply(end(job))

    assert ask_times(tracker, clock, 5.0) == []


def test_a_long_queue_is_asked_for_in_turn(tracker: JobTracker, clock: Clock) -> None:
    watches = [submitted(tracker)[0] for _ in range(25)]
    clock.now += MAX_SILENCE_S
    asked: list[TrackedJob] = []
    for _ in range(3):
        asked += tracker.due_lookups(10)

    assert {id(job) for job in asked} == {id(job) for job in watches}


def test_after_a_gap_all_are_asked_for_although_news_flows(tracker: JobTracker) -> None:
    watches = [submitted(tracker)[0] for _ in range(3)]
    tracker.repair_all()
    tracker.apply(end(tracker.track(uuid4())))

    assert tracker.due_lookups(10) == watches


def test_two_waiters_are_both_woken_and_either_may_leave(tracker: JobTracker) -> None:
    woken: list[str] = []
    job = tracker.track(uuid4())

    def wake_first() -> None:
        woken.append("first")

    with tracker.awaiting(job, wake_first), tracker.awaiting(job, lambda: woken.append("second")):
        tracker.apply(end(job))
    tracker.apply(end(job))

    assert woken == ["first", "second"]
    assert tracker.due_lookups(10) == []


def test_a_reply_for_a_job_nobody_holds_is_dropped(tracker: JobTracker) -> None:
    assert tracker.apply(JobReply(job_id=uuid4(), state=JobState.QUEUED)) is None


def test_what_came_after_the_end_changes_nothing(tracker: JobTracker) -> None:
    job, _ = submitted(tracker)
    tracker.apply(end(job))
    tracker.apply(JobReply(job_id=job.job_id, state=JobState.QUEUED))
    tracker.apply(end(job, JobState.FAILED))

    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert job.result.state is JobState.SUCCEEDED


def test_an_output_left_out_is_asked_for_at_once(tracker: JobTracker) -> None:
    job, submission_id = submitted(tracker)
    tracker.apply(end(job, omitted=True))

    assert not job.is_settled(submission_id)
    assert tracker.due_lookups(10) == [job]


def test_an_output_that_no_lookup_carries_is_done_without(tracker: JobTracker) -> None:
    job, submission_id = submitted(tracker)
    for _ in range(3):
        tracker.apply(end(job, omitted=True))

    assert job.is_settled(submission_id)


def test_a_job_of_another_process_may_appear_within_the_grace(tracker: JobTracker, clock: Clock) -> None:
    job = tracker.track(uuid4())
    tracker.apply(unknown(job))
    clock.now += UNKNOWN_GRACE_S / 2
    tracker.apply(unknown(job))
    assert not job.lost

    clock.now += UNKNOWN_GRACE_S
    tracker.apply(unknown(job))
    assert job.lost


def test_one_ledger_that_knows_the_job_outweighs_those_that_do_not(tracker: JobTracker, clock: Clock) -> None:
    job = tracker.track(uuid4())
    tracker.apply(JobReply(job_id=job.job_id, state=JobState.LEASED))
    clock.now += 2 * UNKNOWN_GRACE_S
    tracker.apply(unknown(job))

    assert (job.state, job.lost) == (JobState.LEASED, False)


def test_a_job_of_ours_is_lost_only_when_an_answer_is_newer_than_its_entry(tracker: JobTracker) -> None:
    job, submission_id = submitted(tracker)
    tracker.asks(job)
    tracker.asks(job)
    assert tracker.apply(unknown(job)) is job  # the intake must be looked into

    tracker.gone_from_intake(job)
    tracker.apply(unknown(job))
    assert not job.is_settled(submission_id)  # answered before the entry was looked for

    tracker.asks(job)
    tracker.apply(unknown(job))
    assert job.lost


def test_a_job_thought_lost_that_appears_is_not_lost(tracker: JobTracker) -> None:
    job, _ = submitted(tracker)
    tracker.gone_from_intake(job)
    tracker.apply(unknown(job))
    assert job.lost

    tracker.apply(JobReply(job_id=job.job_id, state=JobState.QUEUED))
    assert not job.lost


def test_under_a_key_the_end_counts_once_the_ledger_took_the_submission(tracker: JobTracker) -> None:
    job, submission_id = submitted(tracker, has_key=True)
    tracker.apply(end(job))
    assert not job.is_settled(submission_id)

    tracker.apply(JobReply(job_id=job.job_id, state=JobState.QUEUED, submission_id=submission_id))
    assert job.is_settled(submission_id)


def test_a_conflict_concerns_its_submission_alone(tracker: JobTracker) -> None:
    job, first = submitted(tracker, has_key=True)
    again = envelope(job.job_id, has_key=True)
    tracker.expect(again)
    second = again.submission_id
    error = JobError(code="idempotency_conflict", message="another payload")
    tracker.apply(JobReply(job_id=job.job_id, state=None, submission_id=second, conflict=error))

    assert job.conflicts == {second: error}
    assert job.is_settled(second)
    assert not job.is_settled(first)


def test_a_conflict_is_believed_whatever_state_came_with_it(tracker: JobTracker) -> None:
    job, submission_id = submitted(tracker, has_key=True)
    error = JobError(code="idempotency_conflict", message="another payload")
    reply = JobReply(job_id=job.job_id, state=JobState.SUCCEEDED, submission_id=submission_id, conflict=error)
    tracker.apply(reply)

    assert (job.conflicts, job.state) == ({submission_id: error}, None)


def test_a_confirmation_that_never_comes_is_done_without_after_the_intake_is_empty(
    tracker: JobTracker,
) -> None:
    job, submission_id = submitted(tracker, has_key=True)
    assert tracker.apply(end(job)) is job
    assert tracker.apply(end(job)) is job
    assert not job.is_settled(submission_id)

    tracker.gone_from_intake(job)
    tracker.apply(end(job))
    assert not job.is_settled(submission_id)
    tracker.apply(end(job))

    assert job.is_settled(submission_id)


def test_an_answer_is_told_from_other_news(tracker: JobTracker) -> None:
    job = tracker.track(uuid4())
    request_id = tracker.asks(job)
    tracker.apply(JobReply(job_id=job.job_id, state=JobState.QUEUED))
    assert job.pending == {request_id}

    tracker.apply(JobReply(job_id=job.job_id, state=JobState.LEASED, request_id=request_id))
    assert job.pending == set()


def test_a_poller_asks_no_more_often_than_a_waiter(tracker: JobTracker, clock: Clock) -> None:
    job = tracker.track(uuid4())

    assert tracker.take_due(job)
    assert not tracker.take_due(job)
    clock.now += MAX_SILENCE_S
    assert tracker.take_due(job)


def test_watches_nobody_holds_are_forgotten(tracker: JobTracker) -> None:
    job_id = uuid4()
    tracker.track(job_id).replies = 7

    assert tracker.track(job_id).replies == 0


def test_a_reply_that_overtakes_the_submission_counts(tracker: JobTracker) -> None:
    submission = envelope(has_key=True)
    job = tracker.expect(submission)
    tracker.apply(JobReply(job_id=job.job_id, state=JobState.QUEUED, submission_id=submission.submission_id))
    tracker.apply(end(job))
    tracker.submitted(job, PLACE)

    assert job.is_settled(submission.submission_id)


def test_a_submission_that_was_refused_leaves_nothing_to_wait_for(tracker: JobTracker) -> None:
    job, _ = submitted(tracker, has_key=True)
    refused = envelope(job.job_id, has_key=True)
    tracker.expect(refused)
    tracker.withdraw([(job, refused)])

    assert refused.submission_id not in job.unconfirmed
    assert len(job.unconfirmed) == 1

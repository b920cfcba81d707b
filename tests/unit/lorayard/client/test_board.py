"""When a waiting client asks for a job, and what it makes of the answers."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from lorayard.client.board import JobBoard
from lorayard.client.watch import FIRST_SILENCE_S, MAX_SILENCE_S, UNKNOWN_GRACE_S, IntakePlace, JobWatch
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
def board(clock: Clock) -> JobBoard:
    return JobBoard(clock)


def nothing() -> None:
    """Wake nobody."""


def envelope(job_id: UUID | None = None, *, has_key: bool = False) -> JobEnvelope:
    """Make a submission; one more of a job that is named."""
    spec = JobSpec(prompt="hello", idempotency_key="k" if has_key else None)
    return JobEnvelope(job_id=job_id or uuid4(), submission_id=uuid4(), payload_sha256="", spec=spec)


def submitted(board: JobBoard, *, has_key: bool = False) -> tuple[JobWatch, UUID]:
    """Submit a job on the board and wait for it."""
    submission = envelope(has_key=has_key)
    watch = board.expect(submission)
    board.submitted(watch, PLACE)
    board.await_job(watch, nothing)
    return watch, submission.submission_id


def end(watch: JobWatch, state: JobState = JobState.SUCCEEDED, *, omitted: bool = False) -> JobReply:
    """Make the reply that ends a job."""
    result = JobResult(job_id=watch.job_id, state=state)
    return JobReply(job_id=watch.job_id, state=state, result=result, output_omitted=omitted)


def unknown(watch: JobWatch) -> JobReply:
    """Make the reply of a ledger that knows no such job."""
    return JobReply(job_id=watch.job_id, state=None)


def ask_times(board: JobBoard, clock: Clock, seconds: float) -> list[float]:
    """List after how many seconds anything is asked."""
    start, times = clock.now, []
    while clock.now - start < seconds:
        if board.due_lookups(10):
            times.append(clock.now - start)
        clock.now += 0.25
    return times


def test_a_job_of_another_process_is_asked_for_at_once_and_ever_less(board: JobBoard, clock: Clock) -> None:
    board.await_job(board.watch(uuid4()), nothing)

    assert ask_times(board, clock, 8.0) == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5]


def test_a_job_of_ours_is_asked_for_after_silence(board: JobBoard, clock: Clock) -> None:
    submitted(board)

    assert ask_times(board, clock, 5.0) == [FIRST_SILENCE_S, 1.0, 2.0, 4.0]


def test_while_news_flows_a_job_of_ours_is_not_asked_for(board: JobBoard, clock: Clock) -> None:
    submitted(board)
    other = board.watch(uuid4())

    for _ in range(40):
        clock.now += FIRST_SILENCE_S / 2
        board.apply(end(other))
        assert board.due_lookups(10) == []


def test_while_news_flows_a_job_under_a_key_is_asked_for(board: JobBoard, clock: Clock) -> None:
    watch, _ = submitted(board, has_key=True)
    clock.now += FIRST_SILENCE_S
    board.apply(end(board.watch(uuid4())))

    assert board.due_lookups(10) == [watch]


def test_nobody_is_asked_for_whom_nobody_waits(board: JobBoard, clock: Clock) -> None:
    watch, _ = submitted(board)
    board.leave_job(watch, nothing)

    assert ask_times(board, clock, 5.0) == []


def test_an_ended_job_is_not_asked_for(board: JobBoard, clock: Clock) -> None:
    watch, _ = submitted(board)
    board.apply(end(watch))

    assert ask_times(board, clock, 5.0) == []


def test_a_long_queue_is_asked_for_in_turn(board: JobBoard, clock: Clock) -> None:
    watches = [submitted(board)[0] for _ in range(25)]
    clock.now += MAX_SILENCE_S
    asked: list[JobWatch] = []
    for _ in range(3):
        asked += board.due_lookups(10)

    assert {id(watch) for watch in asked} == {id(watch) for watch in watches}


def test_after_a_gap_all_are_asked_for_although_news_flows(board: JobBoard) -> None:
    watches = [submitted(board)[0] for _ in range(3)]
    board.repair_all()
    board.apply(end(board.watch(uuid4())))

    assert board.due_lookups(10) == watches


def test_two_waiters_are_both_woken_and_either_may_leave(board: JobBoard) -> None:
    woken: list[str] = []
    watch = board.watch(uuid4())

    def wake_first() -> None:
        woken.append("first")

    with board.awaiting(watch, wake_first), board.awaiting(watch, lambda: woken.append("second")):
        board.apply(end(watch))
    board.apply(end(watch))

    assert woken == ["first", "second"]
    assert board.due_lookups(10) == []


def test_a_reply_for_a_job_nobody_holds_is_dropped(board: JobBoard) -> None:
    assert board.apply(JobReply(job_id=uuid4(), state=JobState.QUEUED)) is None


def test_what_came_after_the_end_changes_nothing(board: JobBoard) -> None:
    watch, _ = submitted(board)
    board.apply(end(watch))
    board.apply(JobReply(job_id=watch.job_id, state=JobState.QUEUED))
    board.apply(end(watch, JobState.FAILED))

    assert watch.state is JobState.SUCCEEDED
    assert watch.result is not None
    assert watch.result.state is JobState.SUCCEEDED


def test_an_output_left_out_is_asked_for_at_once(board: JobBoard) -> None:
    watch, submission_id = submitted(board)
    board.apply(end(watch, omitted=True))

    assert not watch.is_settled(submission_id)
    assert board.due_lookups(10) == [watch]


def test_an_output_that_no_lookup_carries_is_done_without(board: JobBoard) -> None:
    watch, submission_id = submitted(board)
    for _ in range(3):
        board.apply(end(watch, omitted=True))

    assert watch.is_settled(submission_id)


def test_a_job_of_another_process_may_appear_within_the_grace(board: JobBoard, clock: Clock) -> None:
    watch = board.watch(uuid4())
    board.apply(unknown(watch))
    clock.now += UNKNOWN_GRACE_S / 2
    board.apply(unknown(watch))
    assert not watch.lost

    clock.now += UNKNOWN_GRACE_S
    board.apply(unknown(watch))
    assert watch.lost


def test_one_ledger_that_knows_the_job_outweighs_those_that_do_not(board: JobBoard, clock: Clock) -> None:
    watch = board.watch(uuid4())
    board.apply(JobReply(job_id=watch.job_id, state=JobState.LEASED))
    clock.now += 2 * UNKNOWN_GRACE_S
    board.apply(unknown(watch))

    assert (watch.state, watch.lost) == (JobState.LEASED, False)


def test_a_job_of_ours_is_lost_only_when_an_answer_is_newer_than_its_entry(board: JobBoard) -> None:
    watch, submission_id = submitted(board)
    board.asks(watch)
    board.asks(watch)
    assert board.apply(unknown(watch)) is watch  # the intake must be looked into

    board.gone_from_intake(watch)
    board.apply(unknown(watch))
    assert not watch.is_settled(submission_id)  # answered before the entry was looked for

    board.asks(watch)
    board.apply(unknown(watch))
    assert watch.lost


def test_a_job_thought_lost_that_appears_is_not_lost(board: JobBoard) -> None:
    watch, _ = submitted(board)
    board.gone_from_intake(watch)
    board.apply(unknown(watch))
    assert watch.lost

    board.apply(JobReply(job_id=watch.job_id, state=JobState.QUEUED))
    assert not watch.lost


def test_under_a_key_the_end_counts_once_the_ledger_took_the_submission(board: JobBoard) -> None:
    watch, submission_id = submitted(board, has_key=True)
    board.apply(end(watch))
    assert not watch.is_settled(submission_id)

    board.apply(JobReply(job_id=watch.job_id, state=JobState.QUEUED, submission_id=submission_id))
    assert watch.is_settled(submission_id)


def test_a_conflict_concerns_its_submission_alone(board: JobBoard) -> None:
    watch, first = submitted(board, has_key=True)
    again = envelope(watch.job_id, has_key=True)
    board.expect(again)
    second = again.submission_id
    error = JobError(code="idempotency_conflict", message="another payload")
    board.apply(JobReply(job_id=watch.job_id, state=None, submission_id=second, conflict=error))

    assert watch.conflicts == {second: error}
    assert watch.is_settled(second)
    assert not watch.is_settled(first)


def test_a_conflict_is_believed_whatever_state_came_with_it(board: JobBoard) -> None:
    watch, submission_id = submitted(board, has_key=True)
    error = JobError(code="idempotency_conflict", message="another payload")
    reply = JobReply(
        job_id=watch.job_id, state=JobState.SUCCEEDED, submission_id=submission_id, conflict=error
    )
    board.apply(reply)

    assert (watch.conflicts, watch.state) == ({submission_id: error}, None)


def test_a_confirmation_that_never_comes_is_done_without_after_the_intake_is_empty(board: JobBoard) -> None:
    watch, submission_id = submitted(board, has_key=True)
    assert board.apply(end(watch)) is watch
    assert board.apply(end(watch)) is watch
    assert not watch.is_settled(submission_id)

    board.gone_from_intake(watch)
    board.apply(end(watch))
    assert not watch.is_settled(submission_id)
    board.apply(end(watch))

    assert watch.is_settled(submission_id)


def test_an_answer_is_told_from_other_news(board: JobBoard) -> None:
    watch = board.watch(uuid4())
    request_id = board.asks(watch)
    board.apply(JobReply(job_id=watch.job_id, state=JobState.QUEUED))
    assert watch.pending == {request_id}

    board.apply(JobReply(job_id=watch.job_id, state=JobState.LEASED, request_id=request_id))
    assert watch.pending == set()


def test_a_poller_asks_no_more_often_than_a_waiter(board: JobBoard, clock: Clock) -> None:
    watch = board.watch(uuid4())

    assert board.take_due(watch)
    assert not board.take_due(watch)
    clock.now += MAX_SILENCE_S
    assert board.take_due(watch)


def test_watches_nobody_holds_are_forgotten(board: JobBoard) -> None:
    job_id = uuid4()
    board.watch(job_id).replies = 7

    assert board.watch(job_id).replies == 0


def test_a_reply_that_overtakes_the_submission_counts(board: JobBoard) -> None:
    submission = envelope(has_key=True)
    watch = board.expect(submission)
    board.apply(JobReply(job_id=watch.job_id, state=JobState.QUEUED, submission_id=submission.submission_id))
    board.apply(end(watch))
    board.submitted(watch, PLACE)

    assert watch.is_settled(submission.submission_id)


def test_a_submission_that_was_refused_leaves_nothing_to_wait_for(board: JobBoard) -> None:
    watch, _ = submitted(board, has_key=True)
    refused = envelope(watch.job_id, has_key=True)
    board.expect(refused)
    board.withdraw([(watch, refused)])

    assert refused.submission_id not in watch.unconfirmed
    assert len(watch.unconfirmed) == 1

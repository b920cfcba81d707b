"""What the leader believes of a worker, and when it stops believing."""

from __future__ import annotations

from uuid import UUID, uuid4

from db.records import Canary, JobAttempt, WorkerLimits
from lorayard.contract.messages import EndedJob, HeldJob, Residency
from lorayard.contract.states import JobState
from scheduler.worker_state import Outstanding, WorkerState

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=10, block_size=16, max_model_len=64, max_loras=2, max_lora_rank=8
)


def slot_with(
    job_id: UUID, *, dispatched_at: float = 0.0, attempt: int = 1, is_suspect: bool = False
) -> WorkerState:
    worker = WorkerState("w", "host", LIMITS)
    worker.give(job_id, Outstanding(attempt, "rev", 40, is_suspect, dispatched_at))
    return worker


def held(job_id: UUID, attempt: int = 1) -> list[HeldJob]:
    return [HeldJob(job_id=job_id, attempt=attempt, running=True)]


def test_a_job_missing_from_one_list_is_waited_for_and_from_two_is_given_up() -> None:
    job_id = uuid4()
    worker = slot_with(job_id)

    assert worker.reconcile(held(job_id), 1.0) == []
    assert worker.reconcile([], 2.0) == []
    assert worker.reconcile([], 4.0) == [JobAttempt(job_id, 1)]


def test_a_list_that_names_the_job_again_forgives_a_miss() -> None:
    job_id = uuid4()
    worker = slot_with(job_id)

    worker.reconcile([], 1.0)
    worker.reconcile(held(job_id), 2.0)

    assert worker.reconcile([], 10.0) == []


def test_a_job_never_listed_is_given_up_three_seconds_after_its_dispatch() -> None:
    job_id = uuid4()
    worker = slot_with(job_id)

    assert worker.reconcile([], 2.9) == []
    assert not worker.missing(2.9)
    assert worker.reconcile([], 3.0) == []
    assert worker.missing(3.0).unheard == (JobAttempt(job_id, 1),)


def test_lists_from_before_a_dispatch_take_nothing_back() -> None:
    job_id = uuid4()
    worker = slot_with(job_id)

    assert [worker.reconcile([], at) for at in (0.1, 0.2, 0.3)] == [[], [], []]
    assert not worker.missing(0.3)
    assert worker.reconcile(held(job_id), 0.4) == []
    assert [worker.reconcile([], at) for at in (0.5, 0.6)] == [[], [JobAttempt(job_id, 1)]]


def test_another_attempt_in_the_list_is_not_the_one_dispatched() -> None:
    job_id = uuid4()
    worker = slot_with(job_id, attempt=2)

    assert worker.reconcile(held(job_id, attempt=1), 3.5) == []
    assert worker.missing(3.5).unheard == (JobAttempt(job_id, 2),)
    assert worker.listed_in(held(job_id, attempt=1)) == []


def test_the_end_of_another_attempt_leaves_the_job_outstanding() -> None:
    job_id = uuid4()
    worker = slot_with(job_id, attempt=2)

    worker.end([EndedJob(job_id=job_id, attempt=1, state=JobState.SUCCEEDED)], 1.0)
    assert job_id in worker.outstanding

    worker.end([EndedJob(job_id=job_id, attempt=2, state=JobState.SUCCEEDED)], 1.0)
    assert not worker.outstanding


def test_the_view_sums_up_what_is_outstanding_and_forgets_what_ended() -> None:
    job_id = uuid4()
    worker = slot_with(job_id, is_suspect=True)
    worker.give(job_id, Outstanding(2, "rev", 30, True, 0.0))

    view = worker.view(0.0, max_model_len=64, overcommit_s=0.5)
    assert (view.num_outstanding, view.outstanding_tokens, view.outstanding_revisions) == (1, 30, {"rev": 1})
    assert view.runs_alone

    worker.take_back(JobAttempt(job_id, 2))
    view = worker.view(0.0, max_model_len=64, overcommit_s=0.5)
    assert (view.num_outstanding, view.outstanding_tokens, view.outstanding_revisions) == (0, 0, {})
    assert not view.runs_alone


def test_a_canary_ends_with_the_first_job_that_succeeds() -> None:
    job_id, failed = uuid4(), uuid4()
    worker = slot_with(job_id)
    worker.note_canary(Canary("its engine died", 5.0))

    worker.end([EndedJob(job_id=failed, attempt=1, state=JobState.FAILED)], 1.0)
    before = worker.view(1.0, max_model_len=64, overcommit_s=0.5)
    worker.end([EndedJob(job_id=job_id, attempt=1, state=JobState.SUCCEEDED)], 1.0)
    worker.note_canary(Canary("its engine died", 5.0))  # the ledger has not been told yet
    after = worker.view(1.0, max_model_len=64, overcommit_s=0.5)

    assert (before.is_canary, before.canary_wait_s) == (True, 5.0)
    assert (after.is_canary, after.canary_wait_s) == (False, 0.0)


def test_older_residency_than_the_last_says_nothing() -> None:
    worker = WorkerState("w", "host", LIMITS)
    worker.note_residency(5, [Residency(revision="a", tier="device")], is_whole=True)

    worker.note_residency(4, [Residency(revision="a", tier="none")], is_whole=False)
    assert worker.device == {"a"}

    worker.note_residency(6, [Residency(revision="a", tier="host")], is_whole=False)
    assert (worker.device, worker.host) == (set(), {"a"})

    worker.note_residency(7, [], is_whole=True)
    assert not worker.host


def test_what_its_store_is_not_asked_for_it_still_runs_from_memory() -> None:
    worker = WorkerState("w", "host", LIMITS)
    worker.note_residency(
        1, [Residency(revision="a", tier="device"), Residency(revision="b", tier="host")], is_whole=True
    )

    view = worker.view(0.0, max_model_len=64, overcommit_s=0.5, cooling={"a", "b", "c"})

    assert set(view.cooling) == {"c"}


def test_a_load_is_an_adapter_that_was_not_in_memory_before() -> None:
    worker = WorkerState("w", "host", LIMITS)
    host, device = Residency(revision="a", tier="host"), Residency(revision="a", tier="device")

    assert worker.note_residency(1, [host], is_whole=False) == set()  # what it had before is not known yet
    assert worker.note_residency(1, [host], is_whole=True) == set()
    assert worker.note_residency(2, [device], is_whole=False) == set()
    assert worker.note_residency(3, [Residency(revision="a", tier="none")], is_whole=False) == set()
    assert worker.note_residency(4, [host], is_whole=False) == {"a"}
    assert worker.note_residency(5, [host, Residency(revision="b", tier="host")], is_whole=True) == {"b"}
    assert worker.note_residency(4, [Residency(revision="c", tier="host")], is_whole=True) == set()

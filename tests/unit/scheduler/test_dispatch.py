"""How a round of leased jobs becomes messages."""

from __future__ import annotations

from uuid import UUID, uuid4

from lorayard.contract.messages import BatchJob
from scheduler.dispatch import MAX_MESSAGE_BYTES, MAX_ROUND_BYTES, _parts, _rounds
from scheduler.policies import PendingJob, PlannedBatch


def leased() -> BatchJob:
    return BatchJob(
        job_id=uuid4(),
        attempt=1,
        tenant="default",
        adapter=None,
        revision=None,
        request={"prompt": "x", "min_p": 0.25, "stream": True},
        queue_ms=0.0,
        reply_to=None,
        has_callback=False,
    )


def parts(*sizes: int, max_jobs: int = 128) -> list[list[int]]:
    """Cut jobs of these sizes into messages; returns the sizes in each."""
    jobs = {job.job_id: (job, size) for size in sizes for job in [leased()]}
    size_of = {job_id: size for job_id, (_, size) in jobs.items()}
    cut = _parts([job for job, _ in jobs.values()], size_of, lambda _: False, max_jobs)
    return [[size_of[job.job_id] for job in part] for part in cut]


def test_small_jobs_go_out_in_one_message_and_large_ones_in_several() -> None:
    assert parts(*[100] * 50) == [[100] * 50]

    third = MAX_MESSAGE_BYTES // 3
    assert parts(*[third] * 7) == [[third] * 3, [third] * 3, [third]]


def test_a_message_carries_no_more_jobs_than_a_micro_batch_may() -> None:
    assert parts(1, 2, 3, 4, 5, max_jobs=2) == [[1, 2], [3, 4], [5]]
    assert parts(1, 2, max_jobs=1) == [[1], [2]]


def test_a_job_above_the_limit_goes_out_alone_and_nothing_makes_no_message() -> None:
    huge = MAX_MESSAGE_BYTES + 1

    assert parts(1, huge, 2) == [[1], [huge], [2]]
    assert parts() == []


def test_a_job_whose_message_was_lost_goes_out_alone_after_the_others() -> None:
    jobs = [leased() for _ in range(4)]
    lost = {jobs[0].job_id, jobs[2].job_id}

    cut = list(_parts(jobs, dict.fromkeys((job.job_id for job in jobs), 1), lost.__contains__, 128))

    assert cut == [[jobs[1], jobs[3]], [jobs[0]], [jobs[2]]]


def pending(num_bytes: int) -> PendingJob:
    job_id: UUID = uuid4()
    return PendingJob(job_id, 1, 1, None, 0, 1, 1, 0.0, request_bytes=num_bytes)


def test_a_round_takes_as_many_transactions_as_its_requests_are_large() -> None:
    half = MAX_ROUND_BYTES // 2
    planned = [PlannedBatch("a", tuple(pending(half) for _ in range(3))), PlannedBatch("b", (pending(1),))]

    rounds = [[(plan.incarnation, len(plan.jobs)) for plan in one] for one in _rounds(planned)]

    assert rounds == [[("a", 2)], [("a", 1), ("b", 1)]]
    assert list(_rounds([])) == []

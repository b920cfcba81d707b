"""The first policy: grouping, residency, age, limits, and nobody starved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.policies import PendingJob, plan
from scheduler.policies.lane import Lane
from tests.unit.scheduler.policies.making import CAPACITY, backlog_of, job, numbers, worker


def test_nothing_is_planned_without_jobs_or_without_room() -> None:
    full = worker(outstanding={"a": 8})

    assert plan(backlog_of(), [worker()], 0.0) == []
    assert plan(backlog_of(job(1)), [full], 0.0) == []
    assert plan(backlog_of(job(1)), [], 0.0) == []


def test_a_batch_takes_the_oldest_jobs_up_to_the_free_sequences() -> None:
    backlog = backlog_of(*(job(n, since=float(n)) for n in range(20, 0, -1)))

    [batch] = plan(backlog, [worker()], 0.0)

    assert numbers(batch) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(backlog) == 12


def test_an_adapter_on_the_device_goes_before_an_older_cold_one() -> None:
    cold = [job(n, "cold", since=0.0) for n in range(1, 9)]
    resident = [job(n, "resident", since=1.0) for n in range(11, 19)]

    [batch] = plan(backlog_of(*cold, *resident), [worker(device=("resident",))], 2.0)

    assert {one.revision for one in batch.jobs} == {"resident"}


def test_an_adapter_in_the_host_cache_goes_before_an_older_cold_one() -> None:
    backlog = backlog_of(*(job(n, "cold") for n in range(1, 9)), *(job(n, "cached") for n in range(11, 19)))

    [batch] = plan(backlog, [worker(host=("cached",))], 0.0)

    assert {one.revision for one in batch.jobs} == {"cached"}


def test_a_job_goes_to_the_worker_that_has_its_adapter() -> None:
    workers = [worker("w1"), worker("w2", device=("a",)), worker("w3", host=("a",))]

    [batch] = plan(backlog_of(job(1, "a")), workers, 0.0)

    assert batch.incarnation == "w2"


def test_what_a_worker_cannot_hold_overflows_to_the_next() -> None:
    backlog = backlog_of(*(job(n, "a") for n in range(1, 13)))

    batches = plan(backlog, [worker("w1"), worker("w2", device=("a",))], 0.0)

    assert {batch.incarnation: len(batch.jobs) for batch in batches} == {"w2": 8, "w1": 4}


def test_a_batch_holds_no_more_adapters_than_the_worker_has_slots() -> None:
    backlog = backlog_of(*(job(n, name) for n, name in enumerate("abcdef")))

    [batch] = plan(backlog, [worker(outstanding={"a": 1})], 0.0)

    assert {one.revision for one in batch.jobs} == {"a", "b"}


def test_the_base_model_needs_no_slot() -> None:
    backlog = backlog_of(job(1), job(2, "c"))

    [batch] = plan(backlog, [worker(outstanding={"a": 1, "b": 1})], 0.0)

    assert numbers(batch) == [1]


def test_a_batch_stops_at_the_tokens_that_the_cache_holds() -> None:
    tight = replace(CAPACITY, kv_tokens=65)
    backlog = backlog_of(*(job(n) for n in range(1, 9)))

    [batch] = plan(backlog, [worker(capacity=tight)], 0.0)

    assert len(batch.jobs) == 3


def test_an_empty_worker_takes_one_job_even_if_its_cache_looks_too_small() -> None:
    tight = replace(CAPACITY, kv_tokens=5)

    [batch] = plan(backlog_of(job(1), job(2)), [worker(capacity=tight)], 0.0)

    assert numbers(batch) == [1]


@pytest.mark.parametrize(
    "refused",
    [job(1, "a", rank=32), job(1, "a", prompt_tokens=1_000), job(1, "cooling")],
    ids=["rank", "length", "cooling"],
)
def test_a_job_is_not_given_to_a_worker_that_cannot_run_it(refused: PendingJob) -> None:
    backlog = backlog_of(refused, job(2, "b"))

    [batch] = plan(backlog, [worker(cooling=("cooling",))], 100.0)

    assert numbers(batch) == [2]
    assert refused.job_id in backlog


def test_jobs_that_no_worker_can_run_do_not_hold_up_those_behind_them() -> None:
    hopeless = [job(n, f"big{n}", rank=64) for n in range(1, 200)]

    [batch] = plan(backlog_of(*hopeless, job(500, "small", since=1.0)), [worker()], 100.0)

    assert numbers(batch) == [500]


def test_a_more_urgent_class_goes_first() -> None:
    backlog = backlog_of(
        *(job(n, priority=2, since=0.0) for n in range(1, 9)),
        *(job(n, priority=0, since=1.0) for n in range(11, 19)),
    )

    [batch] = plan(backlog, [worker()], 2.0)

    assert {one.priority for one in batch.jobs} == {0}


def test_a_job_that_waited_too_long_goes_before_residents_and_before_urgent_ones() -> None:
    starved = job(1, "cold", priority=2, since=0.0)
    urgent = [job(n, "hot", priority=0, since=29.5) for n in range(11, 31)]

    [batch] = plan(backlog_of(starved, *urgent), [worker(device=("hot",))], 30.0)

    assert numbers(batch)[0] == 1


def test_a_starving_adapter_gets_the_slot_of_the_one_that_drains_first() -> None:
    starved = job(1, "new", since=0.0)
    more = [job(n, name, since=9.0) for n, name in enumerate(["many", "few"] * 4, start=10)]
    busy = worker(outstanding={"many": 4, "few": 1})

    [batch] = plan(backlog_of(starved, *more), [busy], 10.0)

    assert {one.revision for one in batch.jobs} == {"many"}, "few must drain, and many goes on"


def test_suspects_of_one_group_run_together_and_alone_on_an_empty_worker() -> None:
    suspects = [job(1, group=1), job(2, group=1), job(3, group=2)]
    backlog = backlog_of(*suspects, *(job(n) for n in range(4, 7)))

    batches = plan(backlog, [worker("w1"), worker("w2", outstanding={"a": 1})], 0.0)

    assert {batch.incarnation: numbers(batch) for batch in batches} == {"w1": [1, 2], "w2": [4, 5, 6]}


def test_the_group_that_was_tried_least_comes_first() -> None:
    backlog = backlog_of(job(1, group=1, attempt=3), job(2, group=2, attempt=2), job(3, group=2, attempt=2))

    [batch] = plan(backlog, [worker()], 0.0)

    assert numbers(batch) == [2, 3]


def test_what_does_not_fit_of_a_group_runs_after_the_others() -> None:
    backlog = backlog_of(*(job(n, group=1) for n in range(12)))

    [batch] = plan(backlog, [worker()], 0.0)

    assert numbers(batch) == list(range(8))
    assert len(backlog) == 4


def test_a_group_that_no_worker_could_run_holds_up_no_other() -> None:
    backlog = backlog_of(job(1, "big", rank=99, group=1), job(2, group=2, attempt=5))

    [batch] = plan(backlog, [worker()], 0.0)

    assert numbers(batch) == [2]


def test_nothing_joins_a_worker_that_runs_suspects() -> None:
    assert plan(backlog_of(job(1)), [worker(runs_alone=True)], 0.0) == []


def test_a_busy_worker_drains_for_a_suspect() -> None:
    backlog = backlog_of(job(1, group=1), job(2))

    assert plan(backlog, [worker(outstanding={"a": 1})], 0.0) == []


def test_suspects_leave_half_of_the_workers_to_the_others() -> None:
    suspects = [job(n, group=n) for n in range(1, 9)]
    others = [job(n) for n in range(11, 19)]

    batches = plan(backlog_of(*suspects, *others), [worker(f"w{n}") for n in range(4)], 0.0)

    alone = [batch for batch in batches if batch.jobs[0].group]
    assert [len(batch.jobs) for batch in alone] == [1, 1]
    assert sum(len(batch.jobs) for batch in batches) == 2 + 8


def test_a_worker_in_doubt_gets_one_job_that_is_no_suspect() -> None:
    backlog = backlog_of(job(1, group=1), job(2, since=1.0), job(3, since=2.0))

    [batch] = plan(backlog, [worker(canary_wait_s=0.0)], 3.0)

    assert numbers(batch) == [2]
    assert plan(backlog, [worker(canary_wait_s=0.0, outstanding={"a": 1})], 3.0) == []
    assert plan(backlog, [worker(canary_wait_s=2.0)], 3.0) == []


def test_a_worker_in_doubt_gets_one_suspect_if_there_is_nothing_else_and_no_other_worker() -> None:
    suspects = [job(1, group=1, attempt=2), job(2, group=2, attempt=1), job(3, group=2, attempt=1)]

    [batch] = plan(backlog_of(*suspects), [worker(canary_wait_s=0.0)], 0.0)
    beside = plan(backlog_of(*suspects), [worker("a", canary_wait_s=0.0), worker("b", runs_alone=True)], 0.0)

    assert numbers(batch) == [2]
    assert beside == []


def test_a_worker_with_work_ahead_is_not_fed_after_every_end() -> None:
    backlog = backlog_of(*(job(n) for n in range(1, 40)))
    nearly_full = worker(target=28, outstanding={"a": 25})
    half_used = worker(target=28, outstanding={"a": 17})

    assert plan(backlog, [nearly_full], 0.0) == []
    [batch] = plan(backlog, [half_used], 0.0)
    assert len(batch.jobs) == 11


@pytest.mark.parametrize("now", [0.0, 1_000.0], ids=["grouped", "overdue"])
def test_a_round_looks_no_further_because_more_jobs_of_more_adapters_wait(
    now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    head = Lane.head
    roomy = replace(CAPACITY, max_loras=8)

    def counted(lane: Lane) -> PendingJob | None:
        looks[-1] += 1
        return head(lane)

    for num_jobs in (1_000, 5_000):
        backlog = backlog_of(
            *(job(n, f"adapter{n % (num_jobs // 10)}", since=n / 1e6) for n in range(num_jobs))
        )
        looks.append(0)
        with monkeypatch.context() as patch:
            patch.setattr(Lane, "head", counted)
            batches = plan(backlog, [worker(f"w{n}", roomy) for n in range(4)], now)
        assert sum(len(batch.jobs) for batch in batches) == 32

    few, many = looks
    assert many <= few * 1.1


def test_a_job_waits_for_the_worker_that_has_its_adapter_as_long_as_a_load_takes() -> None:
    waiting = [job(n, "a", since=10.0, adapter_bytes=100_000_000) for n in range(3)]
    workers = [worker("w1", outstanding={"a": 8}), worker("w2")]

    assert plan(backlog_of(*waiting), workers, 10.9) == []
    [batch] = plan(backlog_of(*waiting), workers, 11.1)
    assert (batch.incarnation, numbers(batch)) == ("w2", [0, 1, 2])


def test_an_adapter_with_more_jobs_than_its_worker_runs_goes_to_another_one_at_once() -> None:
    waiting = [job(n, "a", since=10.0, adapter_bytes=100_000_000) for n in range(9)]

    [batch] = plan(backlog_of(*waiting), [worker("w1", outstanding={"a": 8}), worker("w2")], 10.0)

    assert batch.incarnation == "w2"


def test_what_a_cache_has_left_goes_to_no_other_adapter() -> None:
    tight = replace(CAPACITY, kv_tokens=100)
    backlog = backlog_of(job(1, "a", max_tokens=80), job(2, "a", max_tokens=80), job(3, "b", max_tokens=1))

    batch, *_ = plan(backlog, [worker(capacity=tight, device=("a",))], 0.0)

    assert numbers(batch) == [1]

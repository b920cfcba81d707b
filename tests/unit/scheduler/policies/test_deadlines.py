"""Jobs with deadlines: the earliest first when it presses, and none that cannot be met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.policies import FleetOutlook, PendingJob, PlannedBatch, PolicyConfig, plan
from scheduler.policies.backlog import Backlog
from scheduler.policies.deadlines import is_hopeless, presses
from tests.unit.scheduler.policies.making import CAPACITY, backlog_of, job, numbers, worker

ONE = replace(CAPACITY, max_num_seqs=1)


def first(*jobs: PendingJob, now: float, resident: tuple[str, ...] = ()) -> int:
    [batch] = plan(backlog_of(*jobs), [worker(capacity=ONE, device=resident)], now)
    return numbers(batch)[0]


def test_a_deadline_presses_after_a_quarter_of_its_time() -> None:
    dated = job(1, since=10.0, deadline=18.0)

    assert [presses(dated, 18.0, now) for now in (11.9, 12.0)] == [False, True]
    assert [presses(dated, 14.0, now) for now in (10.9, 11.0)] == [False, True], "by when it has to start"


def test_one_with_a_long_answer_has_to_start_before_a_short_one_with_an_earlier_deadline() -> None:
    backlog = Backlog()
    backlog.outlook = FleetOutlook(output_token_s=0.1)
    for one in (job(1, "a", max_tokens=10, deadline=8.0), job(2, "b", max_tokens=60, deadline=10.0)):
        backlog.add(one)

    [batch] = plan(backlog, [worker(capacity=ONE)], 3.9)

    assert numbers(batch) == [2]


@pytest.mark.parametrize("max_workers", [1, None], ids=["full fleet", "no limit"])
def test_one_whose_answer_would_be_late_goes_behind_all_others_and_is_not_refused(
    max_workers: int | None,
) -> None:
    backlog = Backlog()
    backlog.outlook = FleetOutlook(output_token_s=1.0, max_workers=max_workers)
    late = job(1, "hot", max_tokens=10, deadline=8.0)
    for one in (late, job(2, "hot", max_tokens=5, deadline=9.0), job(3, "cold"), job(4, "hot")):
        backlog.add(one)

    order = [numbers(plan(backlog, [worker(capacity=ONE, device=("hot",))], 3.0)[0])[0] for _ in range(3)]

    assert order == [2, 4, 1]
    assert backlog.take_hopeless() == []
    assert [one.admit_seq for one in backlog.jobs()] == [3]


def test_a_late_one_ends_once_no_token_can_come_in_time() -> None:
    backlog = Backlog()
    backlog.outlook = FleetOutlook(first_token_s=1.0, output_token_s=1.0, max_workers=1)
    backlog.add(job(1, "a", max_tokens=10, deadline=8.0))
    blocked = worker(capacity=replace(ONE, kv_tokens=15), outstanding={"b": 1}, target=2)

    assert plan(backlog, [blocked], 3.0) == []
    assert backlog.take_hopeless() == []
    assert plan(backlog, [worker("w2", device=("a",))], 7.5) == []

    assert [one.admit_seq for one in backlog.take_hopeless()] == [1]
    assert not len(backlog)


def test_a_pressing_deadline_loads_what_somebody_has_no_oftener_than_loads_may_take() -> None:
    backlog = backlog_of(job(1, "a", deadline=100.0, adapter_bytes=10**8), job(2, "hot", since=29.0))
    holder, other = worker("w1", outstanding={"a": 8}), worker("w2", capacity=ONE, device=("hot",))
    backlog.note_switch("w2", 10**8, 29.0)

    [before] = plan(backlog, [holder, other], 30.0)
    [after] = plan(backlog, [holder, other], 39.0)

    assert (numbers(before), numbers(after)) == ([2], [1])


def test_one_that_presses_goes_before_residents_and_classes_and_before_that_it_is_grouped() -> None:
    dated = job(1, "cold", priority=2, since=0.0, deadline=8.0)
    others = [job(2, "hot", priority=0, since=0.0), job(3, "hot", priority=0, since=0.0, deadline=100.0)]

    assert first(dated, *others, now=1.0, resident=("hot",)) == 2
    assert first(dated, *others, now=2.0, resident=("hot",)) == 1


def test_of_those_that_press_the_earliest_deadline_goes_first() -> None:
    jobs = [job(1, "a", deadline=9.0), job(2, "b", deadline=7.0), job(3, "a", deadline=8.0)]

    assert first(*jobs, now=4.0) == 2


def test_what_cannot_have_its_first_token_in_time_is_not_planned_but_named() -> None:
    late, tight, fine = job(1, deadline=3.0), job(2, deadline=5.0), job(3, deadline=9.0)
    backlog = backlog_of(late, tight, fine)
    backlog.outlook = FleetOutlook(first_token_s=2.0, num_workers=1, max_workers=1)

    [batch] = plan(backlog, [worker()], 4.0)

    assert numbers(batch) == [3]
    assert backlog.take_hopeless() == [late, tight]
    assert backlog.take_hopeless() == []
    assert not len(backlog)


@pytest.mark.parametrize(
    ("outlook", "refused"),
    [
        (FleetOutlook(first_token_s=3.0, num_workers=2, max_workers=2), True),
        (FleetOutlook(first_token_s=3.0, num_workers=1, max_workers=2), False),
        (FleetOutlook(first_token_s=3.0, num_workers=1, max_workers=None), False),
        (FleetOutlook(first_token_s=3.0, num_workers=1, max_workers=2, worker_start_s=20.0), True),
        (FleetOutlook(first_token_s=1.0, num_workers=2, max_workers=2), False),
    ],
    ids=["full fleet", "may grow", "no limit", "grows too late", "in time"],
)
def test_nothing_is_refused_while_the_fleet_may_grow_in_time(outlook: FleetOutlook, refused: bool) -> None:
    assert is_hopeless(job(1, deadline=2.0), 0.0, outlook) is refused
    assert is_hopeless(job(1, deadline=2.0), 2.0, outlook)
    assert not is_hopeless(job(1), 0.0, outlook)


def test_deadlines_of_one_tenant_do_not_go_before_anothers_share() -> None:
    flood = [job(n, tenant="flood", deadline=4.0) for n in range(1, 20)]
    backlog = Backlog(PolicyConfig(grouping_window=240.0))
    for one in [*flood, job(99, priority=2, tenant="other")]:
        backlog.add(one)

    batches: list[PlannedBatch] = plan(backlog, [worker()], 2.0) + plan(backlog, [worker()], 2.0)

    assert 99 in [one.admit_seq for batch in batches for one in batch.jobs]


def test_slots_come_free_for_several_deadlines_at_a_time() -> None:
    backlog = backlog_of(
        job(1, "c", deadline=10.0), job(2, "d", deadline=11.0), job(3, "a", since=4.0), job(4, "b", since=4.0)
    )

    assert plan(backlog, [worker(outstanding={"a": 1, "b": 1}, device=("a", "b"))], 5.0) == []

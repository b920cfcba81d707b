"""What holds for the first policy whatever the backlog and the workers are."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policies import Backlog, PendingJob, PlannedBatch, WorkerCapacity, WorkerView, plan
from tests.unit.scheduler.policies.making import backlog_of, job, worker

REVISIONS = st.sampled_from([None, "a", "b", "c", "d", "e"])
ADAPTERS = st.sampled_from(["a", "b", "c", "d", "e"])
NOW = 60.0


@st.composite
def jobs(draw: st.DrawFn) -> list[PendingJob]:
    amount = draw(st.integers(0, 60))
    return [
        job(
            number,
            draw(REVISIONS),
            priority=draw(st.integers(0, 2)),
            since=draw(st.floats(0.0, NOW)),
            rank=draw(st.sampled_from([4, 16, 32])),
            prompt_tokens=draw(st.integers(1, 300)),
            max_tokens=draw(st.integers(1, 100)),
            group=draw(st.sampled_from([None, None, None, None, 1, 2])),
            attempt=draw(st.integers(0, 3)),
        )
        for number in range(amount)
    ]


@st.composite
def workers(draw: st.DrawFn) -> list[WorkerView]:
    return [
        worker(
            f"w{number}",
            WorkerCapacity(
                max_num_seqs=draw(st.integers(1, 16)),
                kv_tokens=draw(st.integers(100, 2000)),
                max_model_len=256,
                max_loras=draw(st.integers(0, 3)),
                max_lora_rank=16,
            ),
            outstanding=draw(st.dictionaries(ADAPTERS, st.integers(1, 4), max_size=2)),
            device=tuple(draw(st.sets(ADAPTERS, max_size=3))),
            host=tuple(draw(st.sets(ADAPTERS, max_size=3))),
            cooling=tuple(draw(st.sets(ADAPTERS, max_size=1))),
            canary_wait_s=draw(st.sampled_from([None, None, 0.0, 5.0])),
        )
        for number in range(draw(st.integers(1, 4)))
    ]


def planned(batches: list[PlannedBatch]) -> list[PendingJob]:
    return [one for batch in batches for one in batch.jobs]


@given(jobs(), workers())
def test_a_job_is_planned_once_or_still_waits_and_never_both(
    waiting: list[PendingJob], views: list[WorkerView]
) -> None:
    backlog = backlog_of(*waiting)

    counts = Counter(one.job_id for one in planned(plan(backlog, views, NOW)))

    assert set(counts.values()) <= {1}
    assert all((one.job_id in counts) != (one.job_id in backlog) for one in waiting)
    assert len(backlog) == len(waiting) - len(counts)


@given(jobs(), workers())
def test_no_capacity_is_ever_exceeded(waiting: list[PendingJob], views: list[WorkerView]) -> None:
    by_name = {view.incarnation: view for view in views}

    batches = plan(backlog_of(*waiting), views, NOW)

    assert len({batch.incarnation for batch in batches}) == len(batches)
    for batch in batches:
        _check_capacity(batch, by_name[batch.incarnation])


def _check_capacity(batch: PlannedBatch, view: WorkerView) -> None:
    capacity = view.capacity
    assert view.num_outstanding + len(batch.jobs) <= (1 if view.is_canary else view.target_seqs)
    assert view.canary_wait_s == 0.0
    named = {one.revision for one in batch.jobs if one.revision is not None}
    assert not named & set(view.cooling)
    assert not named or len(named | set(view.outstanding_revisions)) <= max(
        capacity.max_loras, len(view.outstanding_revisions)
    )
    assert all(one.rank <= capacity.max_lora_rank for one in batch.jobs)
    assert all(one.prompt_tokens < capacity.max_model_len for one in batch.jobs)
    tokens = sum(min(one.prompt_tokens + one.max_tokens, capacity.max_model_len) for one in batch.jobs)
    alone = len(batch.jobs) == 1 and not view.num_outstanding
    assert alone or view.outstanding_tokens + tokens <= capacity.kv_tokens
    if any(one.group for one in batch.jobs):
        assert len({one.group for one in batch.jobs}) == 1
        assert not view.num_outstanding


@given(jobs(), workers())
def test_the_same_input_gives_the_same_plan_in_any_order_of_arrival(
    waiting: list[PendingJob], views: list[WorkerView]
) -> None:
    forwards = plan(backlog_of(*waiting), views, NOW)
    backwards = plan(backlog_of(*reversed(waiting)), views, NOW)

    assert forwards == backwards


@given(jobs(), workers())
def test_a_second_round_with_nothing_new_plans_nothing_where_the_first_left_room(
    waiting: list[PendingJob], views: list[WorkerView]
) -> None:
    ordinary = [one for one in waiting if one.group is None]
    backlog = backlog_of(*ordinary)
    plan(backlog, views, 0.0)
    after_first = len(backlog)

    plan(backlog, [view for view in views if view.num_outstanding >= view.target_seqs], 0.0)

    assert len(backlog) == after_first


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(1, 5))
def test_no_job_starves_under_saturating_traffic_of_other_adapters(
    max_loras: int, num_flooding: int, priority: int, run_s: int
) -> None:
    """One worker, adapters that always have urgent jobs waiting, and a single job of another adapter."""
    sim = _Simulation(max_loras, num_flooding, run_s)
    lonely = job(1_000_000, "lonely", priority=priority, since=0.0)
    sim.backlog.add(lonely)
    bound = sim.backlog.config.starvation_s[priority]

    started_at = sim.run_until_started(lonely, limit=200.0)

    assert started_at is not None, "the lonely job was never dispatched"
    # The floods fall overdue too; with one slot each may have its turn, and a change of adapters, first.
    assert started_at <= bound + (num_flooding + 1) * run_s + 1.0


class _Simulation:
    """One worker in whole seconds; each dispatched job runs for `run_s`, floods never run dry."""

    def __init__(self, max_loras: int, num_flooding: int, run_s: int) -> None:
        self.backlog = Backlog()
        self.capacity = WorkerCapacity(8, 1_000_000, 1_000, max_loras, 16)
        self.floods = [f"flood{n}" for n in range(num_flooding)]
        self.run_s = run_s
        self.running: list[tuple[float, PendingJob]] = []
        self.number = 0

    def run_until_started(self, lonely: PendingJob, limit: float) -> float | None:
        now = 0.0
        while now <= limit:
            self.running = [(ends, one) for ends, one in self.running if ends > now]
            self._flood(now)
            for batch in plan(self.backlog, [self._view()], now):
                if lonely in batch.jobs:
                    return now
                self.running += [(now + self.run_s, one) for one in batch.jobs]
            now += 0.5
        return None

    def _flood(self, now: float) -> None:
        for name in self.floods:
            for _ in range(4):
                self.number += 1
                self.backlog.add(job(self.number, name, priority=0, since=now))

    def _view(self) -> WorkerView:
        counts = Counter(one.revision for _, one in self.running if one.revision)
        return worker("w", self.capacity, outstanding=dict(counts), device=tuple(self.floods[:1]))

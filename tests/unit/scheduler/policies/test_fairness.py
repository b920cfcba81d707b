"""Tenants get their shares, whatever the classes, deadlines and adapters of their jobs are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policies import Backlog, Fairness, PolicyConfig, Standing, plan
from tests.unit.scheduler.policies.fake_fleet import FakeFleet, jobs_in
from tests.unit.scheduler.policies.making import CAPACITY, job, numbers, worker

WINDOW = 240.0
"""One micro-batch of eight jobs of 30."""

CONFIG = PolicyConfig(grouping_window=WINDOW)
CLASSES = st.integers(0, 2)
DEADLINES = st.sampled_from([None, 1.5, 20.0, 1_000.0])


@settings(max_examples=40, deadline=None)
@given(
    flood_class=CLASSES,
    flood_deadline=DEADLINES,
    flood_adapters=st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4, unique=True),
    classes=st.lists(CLASSES, min_size=1, max_size=3),
    deadline=DEADLINES,
    adapter=st.sampled_from(["a", "own", None]),
    before=st.integers(0, 30),
)
def test_whoever_floods_another_tenants_job_starts_within_two_micro_batches(
    flood_class: int,
    flood_deadline: float | None,
    flood_adapters: list[str],
    classes: list[int],
    deadline: float | None,
    adapter: str | None,
    before: int,
) -> None:
    fleet = FakeFleet(Backlog(CONFIG))
    for n in range(8 * (before + 4)):
        revision = flood_adapters[n % len(flood_adapters)]
        due = None if flood_deadline is None else flood_deadline * 100
        fleet.backlog.add(job(n, revision, priority=flood_class, tenant="flood", deadline=due))
    for _ in range(before):
        fleet.round()

    due = None if deadline is None else fleet.now + deadline
    mine = [
        job(10_000 + n, adapter, priority=one, tenant="other", since=fleet.now, deadline=due)
        for n, one in enumerate(classes)
    ]
    for one in mine:
        fleet.backlog.add(one)
    started = jobs_in(fleet.round()) + jobs_in(fleet.round())

    assert set(mine) <= set(started)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.just(1.0)),
    num_workers=st.integers(1, 3),
    shared=st.booleans(),
    output=st.sampled_from([None, 1]),
    change_at=st.integers(0, 30),
)
def test_two_backlogged_tenants_get_their_shares_across_a_change_of_leader(
    weights: tuple[float, float], num_workers: int, shared: bool, output: int | None, change_at: int
) -> None:
    fleet = FakeFleet(Backlog(CONFIG), num_workers, output=output)
    shares = dict(zip(("p", "q"), weights, strict=True))
    fleet.backlog.fairness.reweigh(shares)
    for n in range(1_000):
        fleet.backlog.add(job(2 * n, "a", tenant="p", priority=0))
        fleet.backlog.add(job(2 * n + 1, "a" if shared else "b", tenant="q", priority=2))
    most = 10 + 2 * 10
    gaps = []

    for number in range(30):
        if number == change_at:
            fleet.backlog = _next_leaders(fleet, shares)
        fleet.round()
        gaps.append(abs(fleet.served["p"] / weights[0] - fleet.served["q"] / weights[1]))

    assert max(gaps) <= 2 * most * num_workers + WINDOW * 2


def _next_leaders(fleet: FakeFleet, weights: dict[str, float]) -> Backlog:
    """Build a backlog as a new leader does: from committed usage, kept lifts, leased and queued jobs."""
    before = fleet.backlog.fairness
    fairness = Fairness(window=WINDOW)
    fairness.reweigh(weights)
    standings = {tenant: before.standing(tenant) for tenant in weights}
    fairness.restore(standings, [job for _, _, job in fleet.running.values()], list(weights))
    backlog = Backlog(CONFIG, fairness)
    for one in fleet.backlog.jobs():
        backlog.add(one)
    return backlog


def test_a_new_leader_counts_as_the_old_one_did() -> None:
    fleet = FakeFleet(Backlog(CONFIG), output=3, run_rounds=2)
    fleet.backlog.fairness.reweigh({"p": 2.0})
    for n in range(60):
        fleet.backlog.add(job(n, tenant="p" if n % 3 else "q"))
    for _ in range(4):
        fleet.round()
    before = fleet.backlog.fairness
    old = {tenant: before.share(tenant).counter for tenant in "pq"}

    backlog = _next_leaders(fleet, {"p": 2.0, "q": 1.0})

    # What is in flight is expected to write what was asked for: the new leader has learned nothing yet.
    assert backlog.fairness.standing("p") == before.standing("p")
    assert {tenant: backlog.fairness.share(tenant).counter for tenant in "pq"} == pytest.approx(old, rel=0.5)


def test_who_was_idle_has_saved_up_no_more_than_a_window() -> None:
    fairness = Fairness(window=WINDOW)
    backlog = Backlog(CONFIG, fairness)
    fleet = FakeFleet(backlog)
    for n in range(800):
        backlog.add(job(n, tenant="busy"))
    for _ in range(20):
        fleet.round()

    for n in range(1_000, 1_100):
        backlog.add(job(n, tenant="idle"))
    rounds = [[one.tenant for one in jobs_in(fleet.round())] for _ in range(6)]

    assert set(rounds[0]) == {"idle"}
    assert rounds[-1].count("busy") == rounds[-1].count("idle") == 4
    assert fairness.changed()["idle"].lift > 0


def test_a_tenant_that_no_worker_could_serve_does_not_catch_up_when_one_can() -> None:
    backlog = Backlog(CONFIG)
    fleet = FakeFleet(backlog)
    for n in range(400):
        backlog.add(job(n, "big", rank=64, tenant="blocked"))
        backlog.add(job(1_000 + n, tenant="served"))
    for _ in range(30):
        assert {one.tenant for one in jobs_in(fleet.round())} == {"served"}

    fleet.capacity = replace(CAPACITY, max_lora_rank=64)
    tenants = [one.tenant for _ in range(8) for one in jobs_in(fleet.round())]

    assert tenants[:8] == ["blocked"] * 8
    assert tenants[32:].count("served") == tenants[32:].count("blocked")


def test_a_newcomer_is_lifted_by_those_who_are_served_and_not_by_one_whom_nobody_can_serve() -> None:
    backlog = Backlog(CONFIG)
    fleet = FakeFleet(backlog)
    backlog.add(job(9_999, "big", rank=64, tenant="blocked"))
    for n in range(800):
        backlog.add(job(n, tenant="served"))
    for _ in range(30):
        fleet.round()

    for n in range(1_000, 1_100):
        backlog.add(job(n, tenant="newcomer"))
    tenants = [one.tenant for _ in range(4) for one in jobs_in(fleet.round())]

    assert tenants.count("served") >= 8


def test_the_weight_counts_from_when_it_is_changed() -> None:
    fairness = Fairness(window=WINDOW)
    fairness.restore({"p": Standing(lift=10.0, service=900.0)}, [], [])

    fairness.reweigh({"p": 9.0})

    assert fairness.share("p").counter == pytest.approx(910.0)
    changed = fairness.changed()
    assert changed == {"p": Standing(lift=810.0, service=900.0, weight=9.0)}
    fairness.reweigh({"p": 3.0})
    fairness.note_written(changed)
    assert fairness.changed() == {"p": Standing(lift=610.0, service=900.0, weight=3.0)}
    fairness.note_written(fairness.changed())
    assert fairness.changed() == {}


def test_a_job_that_comes_back_is_not_charged_and_one_that_ends_at_what_it_came_to() -> None:
    backlog = Backlog(CONFIG)
    back, short = job(1, tenant="p"), job(2, tenant="p")
    backlog.add(back)
    backlog.add(short)
    plan(backlog, [worker()], 0.0)
    share = backlog.fairness.share("p")
    assert share.counter == 60.0

    backlog.add(back)
    backlog.fairness.settle(short.job_id, 12, 4)

    assert share.counter == share.service == 20.0
    backlog.fairness.settle(short.job_id, 12, 4)
    assert share.counter == 20.0


def test_charges_of_jobs_that_nobody_has_are_undone() -> None:
    backlog = Backlog(CONFIG)
    for n in (1, 2):
        backlog.add(job(n, tenant="p"))
    plan(backlog, [worker()], 0.0)

    backlog.fairness.keep_charges(lambda job_id: job_id.int == 1)

    assert backlog.fairness.share("p").counter == 30.0


def test_adapters_are_grouped_across_tenants_within_the_window() -> None:
    def loads(window: float) -> int:
        fleet = FakeFleet(Backlog(PolicyConfig(grouping_window=window)), round_s=0.1)
        for n in range(480):
            fleet.backlog.add(job(n, f"adapter{n % 6}", tenant=f"tenant{n % 6}"))
        while len(fleet.backlog):
            fleet.round()
        return fleet.num_loads

    assert loads(960.0) <= loads(240.0) / 2 <= loads(1.0) / 4


def test_counters_are_forgotten_but_for_tenants_with_jobs_and_what_the_ledger_lacks() -> None:
    fairness = Fairness(window=WINDOW)
    fairness.remember({"idle": Standing(5_000.0), "waiting": Standing(1_000.0)})
    running = job(1, tenant="running")
    fairness.charge(running)
    fairness.serve(5_000.0)
    fairness.arrive("lifted")

    fairness.forget(["waiting"])
    known = {one for one in ("idle", "waiting", "running", "lifted") if fairness.knows(one)}
    fairness.take_back(running.job_id)

    assert known == {"waiting", "running", "lifted"}
    assert fairness.share("running").in_flight == 0.0
    assert list(fairness.changed()) == ["lifted"]


def test_fifo_and_grouped_know_no_tenants() -> None:
    flood = [job(n, tenant="flood", since=0.0) for n in range(1, 17)]
    other = job(99, tenant="other", since=1.0, priority=0)

    def first(policy: PolicyConfig) -> list[int]:
        backlog = Backlog(policy)
        for one in [*flood, other]:
            backlog.add(one)
        [batch] = plan(backlog, [worker()], 2.0)
        return numbers(batch)

    assert first(PolicyConfig(policy="fifo")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert first(PolicyConfig(policy="grouped")) == [99, 1, 2, 3, 4, 5, 6, 7]


def test_fifo_waits_for_its_head_and_passes_over_what_nobody_can_run() -> None:
    backlog = Backlog(PolicyConfig(policy="fifo"))
    for one in [job(1, "big", rank=64), job(2, "a"), job(3, "b"), job(4, "c"), job(5, "a")]:
        backlog.add(one)

    [batch] = plan(backlog, [worker()], 0.0)

    assert numbers(batch) == [2, 3]
    assert len(backlog) == 3

"""Adapters ahead of their jobs: who loads what, who keeps what, and what leaves for it."""

from __future__ import annotations

from dataclasses import replace

from scheduler.policies import AdapterPlan, lookahead
from tests.unit.scheduler.policies.making import CAPACITY, backlog_of, job, worker


def test_an_adapter_that_nobody_has_is_loaded_by_one_worker() -> None:
    plans = lookahead(backlog_of(job(1, "a"), job(2, "b")), [worker("w1"), worker("w2")], 0.0)

    assert plans == [AdapterPlan("w1", prefetch=("a",)), AdapterPlan("w2", prefetch=("b",))]


def test_a_worker_keeps_what_it_will_need_and_drops_only_for_what_comes() -> None:
    backlog = backlog_of(job(1, "new"), job(2, "kept"))

    [plan] = lookahead(backlog, [worker(device=("kept",), host=("x", "y"))], 0.0)
    nothing_comes = lookahead(backlog_of(job(2, "kept")), [worker(host=("kept", "x", "y"))], 0.0)

    assert plan == AdapterPlan("w1", prefetch=("kept", "new"), drop=("x",))
    assert nothing_comes == [AdapterPlan("w1", prefetch=("kept",))]


def test_what_is_in_use_is_never_dropped() -> None:
    [plan] = lookahead(backlog_of(job(1, "new")), [worker(outstanding={"busy": 1}, device=("busy",))], 0.0)

    assert plan == AdapterPlan("w1", prefetch=("new",))


def test_an_adapter_with_more_jobs_than_its_worker_soon_runs_goes_to_another_one_too() -> None:
    workers = [worker("w1", device=("hot",)), worker("w2")]

    few = lookahead(backlog_of(*(job(n, "hot") for n in range(16))), workers, 0.0)
    many = lookahead(backlog_of(*(job(n, "hot") for n in range(17))), workers, 0.0)

    assert few == [AdapterPlan("w1", prefetch=("hot",))]
    assert many == [AdapterPlan("w1", prefetch=("hot",)), AdapterPlan("w2", prefetch=("hot",))]


def test_a_worker_with_enough_to_do_for_its_own_adapters_loads_no_other() -> None:
    backlog = backlog_of(*(job(n, "own") for n in range(16)), job(99, "new"))

    assert lookahead(backlog, [worker(device=("own",))], 0.0) == [AdapterPlan("w1", prefetch=("own",))]


def test_a_worker_is_asked_for_nothing_that_it_cannot_run() -> None:
    no_lora = replace(CAPACITY, max_loras=0)
    backlog = backlog_of(job(1, "big", rank=64), job(2, "cooling"))

    assert lookahead(backlog, [worker("w1", cooling=("cooling",)), worker("w2", no_lora)], 0.0) == []

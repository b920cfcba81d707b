"""The simulator does what can be computed by hand, loses and repeats nothing, and is the same each time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.policies.goals import OUTPUT_WEIGHT, PROMPT_WEIGHT, Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.ours import Ours
from benchmarks.policies.rivals.edf import ClairvoyantEdf
from benchmarks.policies.rivals.fifo import Fifo
from benchmarks.policies.scenarios import RIVALS, MakePolicy
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Population
from tests.unit.benchmarks.policies.making import SIZE, TOY, job, pool, setting, simulate
from tests.unit.scheduler.policies.making import worker as view

POLICIES: dict[str, MakePolicy] = {"ours": Ours, "EDF": ClairvoyantEdf, **RIVALS}
SMALL = Pool(num_workers=3, max_num_seqs=4, kv_tokens=3_000, slots=2, host_adapters=3, num_adapters=12)


def test_two_workers_run_five_jobs_as_computed_by_hand() -> None:
    jobs = [job(1, "a", 3), job(2, "b", 2), job(3, "a", 1), job(4, "b", 4), job(5, "a", 2)]

    simulator = simulate(pool(num_workers=2), Fifo, jobs)

    # Worker 0 has a: jobs 1 and 3 begin at 0, the latter's place is free at 1, when the next step has begun.
    assert [one.worker for one in jobs] == [0, 1, 0, 1, 0]
    assert [one.started_at for one in jobs] == [0, 0, 0, 0, 2]
    assert [one.ended_at for one in jobs] == [3, 2, 1, 4, 4]
    assert [worker.num_steps for worker in simulator.workers] == [4, 4]


def test_prompts_lengthen_the_step_that_reads_them() -> None:
    first, second = job(1, "a", 3, prompt=10), job(2, "a", 1, prompt=5, at=0.5)

    simulate(pool(), Fifo, [first, second], hardware=replace(TOY, prompt_token_s=0.1))

    assert first.started_at == 0
    # It came during the first step, which takes 2 s, and joins the second, which takes 1.5.
    assert second.started_at == pytest.approx(2)
    assert second.ended_at == pytest.approx(3.5)
    assert first.ended_at == pytest.approx(4.5)


def test_a_cold_adapter_is_loaded_and_copied_before_its_job_runs() -> None:
    warm, cold = job(1, "a", 2), job(2, "b", 1)

    simulator = simulate(pool(), Fifo, [warm, cold])

    assert (cold.dispatched_at, cold.started_at, cold.ended_at) == (2, 14, 15)
    residency = simulator.workers[0].residency
    assert (residency.store_bytes, residency.slot_bytes) == (SIZE, SIZE)
    assert list(residency.slots) == ["b"]


def test_an_adapter_that_is_wanted_twice_is_loaded_once() -> None:
    jobs = [job(1, "b", 1), job(2, "b", 1)]

    simulator = simulate(pool(), Fifo, jobs)

    assert [one.ended_at for one in jobs] == [13, 13]
    assert simulator.workers[0].residency.store_bytes == SIZE


def test_a_job_waits_for_tokens_in_the_kv_cache() -> None:
    jobs = [job(1, "a", 2, prompt=58), job(2, "a", 1, prompt=40)]

    simulate(pool(), Fifo, jobs)

    assert [one.started_at for one in jobs] == [0, 2]


def test_a_deadline_ends_what_has_not_begun_and_nothing_else() -> None:
    late, expired = job(1, "a", 5, deadline=4.0), job(2, "b", 1, deadline=3.0)

    simulator = simulate(pool(), Fifo, [late, expired])

    assert (late.ended_at, late.is_in_time) == (5, False)
    assert (expired.is_expired, expired.ended_at, expired.is_in_time) == (True, None, False)
    assert len(simulator.ended) == 2


def test_service_counts_the_tokens_that_are_there() -> None:
    jobs = [job(1, "a", 4, prompt=10), job(2, "a", 2, prompt=20)]
    simulator = Simulator(pool(), TOY, [jobs[0].adapter], Fifo)
    simulator.submit(jobs)

    simulator.run(until=3.0)

    assert simulator.workers[0].served(3.0) == {"tenant": 30 * PROMPT_WEIGHT + 5 * OUTPUT_WEIGHT}


@pytest.mark.parametrize("name", POLICIES)
def test_every_job_ends_once_and_nothing_is_left(name: str) -> None:
    population = Population(SMALL, Hardware(), 0.6, seed=3)
    jobs = population.arrivals(80, 1.2, 2.0, with_deadlines=True)
    simulator = Simulator(SMALL, Hardware(), population.adapters, POLICIES[name])
    simulator.submit(jobs)

    simulator.run()

    assert sorted(one.number for one in simulator.ended) == [one.number for one in jobs]
    ran = [one for one in jobs if one.ended_at is not None]
    assert len(ran) + sum(one.is_expired for one in jobs) == len(jobs)
    tokens = sum(one.prompt_tokens + one.output_tokens for one in ran)
    assert sum(worker.num_tokens for worker in simulator.workers) == tokens
    assert all(
        len(worker.order) == sum(one.worker == worker.index for one in jobs) for worker in simulator.workers
    )
    assert not any(worker.waiting or worker.running or worker.residency.uses for worker in simulator.workers)
    assert not any(shown.num_outstanding or shown.outstanding_tokens for shown in simulator.views())
    assert len(simulator.policy) == 0


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        population = Population(SMALL, Hardware(), 0.3, seed=7)
        simulator = Simulator(SMALL, Hardware(), population.adapters, Ours)
        simulator.submit(population.arrivals(60, 1.5, 4.0))
        simulator.run()
        runs.append([(one.number, one.worker, one.started_at, one.ended_at) for one in simulator.ended])

    assert runs[0] == runs[1]


def test_retry_after_is_the_queue_by_the_pace_of_what_workers_have_in_hand() -> None:
    policy = Ours(setting())
    done = [job(number, "a", 1) for number in range(10)]
    for one in done:
        one.dispatched_at, one.ended_at = 0.0, 5.0
    policy.ended("worker-0000", done, 5.0)
    busy = [view(outstanding={"a": 4})]
    assert policy.retry_after_s(20, busy, 5.0) is None, "nothing waits"

    for number in range(10, 50):
        policy.add(job(number, "a", 1), 5.0)

    assert policy.retry_after_s(20, busy, 5.0) == pytest.approx(20 * 5.0 / 4), "one of four ends each 1.25 s"
    assert policy.retry_after_s(20, [], 5.0) is None


def test_a_new_leader_goes_on_with_what_waits() -> None:
    jobs = [job(number, "a", 2) for number in range(6)]
    simulator = Simulator(pool(), TOY, [jobs[0].adapter], Ours)
    simulator.submit(jobs)

    simulator.run(until=1.0)
    simulator.change_leader()
    simulator.run()

    assert [one.number for one in simulator.ended] == list(range(6))

"""Jobs follow the laws that the goals name, steps take what the engine's benchmarks measured."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean, stdev

import pytest

from benchmarks.policies.goals import DEADLINE_SLACK, SKEWS, Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.workload import Population


@pytest.mark.parametrize("skew", SKEWS)
def test_a_tenth_of_the_adapters_gets_its_share_of_jobs(skew: float) -> None:
    population = Population(Pool(num_adapters=100), Hardware(), skew, seed=1)
    popular = {adapter.name for adapter in population.adapters[:10]}

    drawn = [population.job(0.0).adapter.name in popular for _ in range(4_000)]

    assert mean(drawn) == pytest.approx(0.1**skew, abs=0.025)


@pytest.mark.parametrize("cv", [1.0, 2.0])
def test_arrivals_have_the_load_and_the_variation_asked_for(cv: float) -> None:
    population = Population(Pool(), Hardware(), 0.6, seed=2)

    times = [job.submitted_at for job in population.arrivals(6_000, 0.9, cv)]

    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 1 / mean(gaps) == pytest.approx(0.9 * population.capacity, rel=0.06)
    assert stdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.06)


def test_the_same_jobs_come_at_every_load() -> None:
    runs = [Population(Pool(), Hardware(), 0.6, seed=3).arrivals(50, load, 2.0) for load in (0.5, 1.0)]

    assert [job.adapter for job in runs[0]] == [job.adapter for job in runs[1]]
    assert [job.output_tokens for job in runs[0]] == [job.output_tokens for job in runs[1]]
    assert [job.submitted_at for job in runs[0]] == pytest.approx([2 * job.submitted_at for job in runs[1]])


def test_deadlines_are_multiples_of_the_latency_alone() -> None:
    jobs = Population(Pool(), Hardware(), 0.6, seed=4).arrivals(200, 1.0, 1.0, with_deadlines=True)

    least, most = DEADLINE_SLACK
    slacks = [
        (job.deadline_at - job.submitted_at) / job.alone_s for job in jobs if job.deadline_at is not None
    ]
    assert len(slacks) == 200
    assert least <= min(slacks) < least + 1
    assert most - 1 < max(slacks) <= most


@pytest.mark.parametrize(
    ("rows", "adapters", "measured_ms"),
    [(1, 0, 6.189), (32, 0, 7.324), (64, 0, 8.232), (32, 1, 7.851), (32, 8, 8.201), (32, 32, 9.436)],
)
def test_a_step_takes_what_was_measured(rows: int, adapters: int, measured_ms: float) -> None:
    assert 1e3 * Hardware().step_time_s(rows, adapters, 16 * adapters) == pytest.approx(measured_ms, rel=0.03)


def test_a_load_takes_what_was_measured() -> None:
    hardware = Hardware()

    load_s = hardware.load_s + hardware.adapter_bytes(16) / hardware.store_bytes_per_s

    assert 0.78 < load_s < 0.88

"""How far ETA and `retry_after_s` are off, and what a decision costs."""

from __future__ import annotations

import gc
import math
from typing import Final

from benchmarks.policies import goals
from benchmarks.policies.goals import Matrix
from benchmarks.policies.measures import Figure, Found, measure, percentile
from benchmarks.policies.ours import Ours
from benchmarks.policies.scenarios import HARDWARE, MIDDLE_SKEW, OURS
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Job, Population

_FIRST_LOOK_S: Final = 5.0
_LOOK_EVERY_S: Final = 1.0
_DECISIONS: Final = 1_500
"""Jobs that end while the cost of decisions is measured."""


def forecasts(seed: int, matrix: Matrix, load: float) -> Found:
    """Ask once a second when the youngest job will have ended, and half of the queue be dispatched."""
    population = Population(matrix.pool, HARDWARE, MIDDLE_SKEW, seed)
    jobs = population.arrivals(matrix.arriving_jobs, load, 1.0)
    simulator = Simulator(matrix.pool, HARDWARE, population.adapters, Ours)
    simulator.submit(jobs)
    etas: list[tuple[float, float, Job]] = []
    retries: list[tuple[float, float, int]] = []
    given = 0.0
    look_at, last = _FIRST_LOOK_S, jobs[-1].submitted_at
    dispatched: list[float] = []
    simulator.on_dispatch = lambda _, now: dispatched.append(now)
    while look_at < last:
        simulator.run(until=look_at)
        look_at += _LOOK_EVERY_S
        now, views = simulator.now, simulator.views()
        waiting = [
            job for job in jobs if job.submitted_at + HARDWARE.admit_s <= now and job.dispatched_at is None
        ]
        if not waiting:
            continue
        given += 1
        if (eta := simulator.policy.eta_s(waiting[-1], views, now)) is not None:
            etas.append((now, eta, waiting[-1]))
        wanted = max(1, len(waiting) // 2)
        if (retry := simulator.policy.retry_after_s(wanted, views, now)) is not None:
            retries.append((now, retry, len(dispatched) + wanted - 1))
    simulator.run()
    case = f"load {load:g}"
    off = [abs(eta - (job.ended_at - now)) / (job.ended_at - now) for now, eta, job in etas if job.ended_at]
    retry_off = [
        abs(retry - (dispatched[index] - now)) / (dispatched[index] - now) for now, retry, index in retries
    ]
    return Found(
        [
            Figure(goals.ETA_ERROR, case, percentile(off, 0.5)),
            Figure(goals.RETRY_ERROR, case, percentile(retry_off, 0.5)),
        ],
        [measure(f"arrivals, {case}", OURS, simulator, jobs)],
    )


def decisions(matrix: Matrix, queued: tuple[int, ...] = goals.QUEUED, num_jobs: int = _DECISIONS) -> Found:
    """Measure the processor time of planning, for each micro-batch that comes of it, by queued jobs.

    The garbage collector does not walk through the queue meanwhile: the simulator's own jobs are in it.
    """
    cost_ms: dict[int, float] = {}
    for num_queued in queued:
        population = Population(matrix.pool, HARDWARE, MIDDLE_SKEW, 1)
        simulator = Simulator(matrix.pool, HARDWARE, population.adapters, Ours, replenish=population.job)
        simulator.submit([population.job(0.0) for _ in range(num_queued)])
        gc.collect()
        gc.freeze()
        simulator.run(num_ended=num_jobs)
        before_s, before = simulator.plan_s, simulator.num_batches
        simulator.run(num_ended=2 * num_jobs)
        gc.unfreeze()
        cost_ms[num_queued] = 1e3 * (simulator.plan_s - before_s) / (simulator.num_batches - before)
    return Found(
        [
            *(Figure(goals.DECISION_MS, f"{count:,} queued", cost) for count, cost in cost_ms.items()),
            Figure(
                goals.DECISION_RATIO, "", cost_ms[queued[-1]] / cost_ms[queued[0]] if queued else math.nan
            ),
        ],
        [],
    )

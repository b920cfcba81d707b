"""Workloads of several tenants: two that always have jobs waiting, and one that floods another."""

from __future__ import annotations

import math
from typing import Final

from benchmarks.policies import goals
from benchmarks.policies.goals import Goal, Matrix
from benchmarks.policies.measures import Figure, Found, measure
from benchmarks.policies.ours import Ours
from benchmarks.policies.scenarios import HARDWARE, MIDDLE_SKEW, OURS, RIVALS, MakePolicy
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import MAX_TOKENS, NORMAL, Job, Population

HEAVY, LIGHT = "heavy", "light"
_BACKLOG_EACH: Final = 1_000
_LOOK_EVERY_S: Final = 0.5
_FLOOD_S: Final = 60.0
_FIRST_LIGHT_S: Final = 5.0
_NUM_LIGHT: Final = 20

MIXES: Final = {
    "equal classes": (NORMAL, NORMAL, None),
    "flood high, other low": (0, 2, None),
    "flood low, other high": (2, 0, None),
    "flood due in 60 s": (NORMAL, NORMAL, 60.0),
}
"""Classes of the tenant that floods and of the other one, and the flood's deadline."""


def service_gap(seed: int, matrix: Matrix, *, has_change: bool) -> Found:
    """Keep jobs of two tenants waiting, four times as long the one's: how far apart does service drift?

    The bound is VTC's for two clients that are backlogged all the time, on as many engines as there are
    workers, and one grouping window.
    """
    goal = goals.SERVICE_GAP_AFTER_CHANGE if has_change else goals.SERVICE_GAP
    policies: dict[str, MakePolicy] = {OURS: Ours} if has_change else {OURS: Ours, **RIVALS}
    workload = "two backlogged tenants" + (", leader changes" if has_change else "")
    figures, measured = [], []
    for name, make in policies.items():
        simulator, gap, bound = _drift(seed, matrix, make, has_change=has_change)
        if name == OURS:
            figures.append(Figure(goal, "", gap / bound))
        measured.append(measure(workload, name, simulator, simulator.jobs)._replace(score=gap / bound))
    return Found(figures, measured)


def _drift(
    seed: int, matrix: Matrix, make: MakePolicy, *, has_change: bool
) -> tuple[Simulator, float, float]:
    """Return a run, by how much the difference of both tenants' service changed, and the bound."""
    pool = matrix.pool
    population = Population(pool, HARDWARE, MIDDLE_SKEW, seed)

    def job_of(tenant: str, now: float) -> Job:
        job = population.job(now, tenant=tenant)
        if tenant == LIGHT:
            job.prompt_tokens, job.output_tokens = -(-job.prompt_tokens // 4), -(-job.output_tokens // 4)
        return job

    simulator = Simulator(pool, HARDWARE, population.adapters, make)

    def replace_it(job: Job, now: float) -> None:
        simulator.submit([job_of(job.tenant, now)])

    simulator.on_dispatch = replace_it
    simulator.submit([job_of(tenant, 0.0) for _ in range(_BACKLOG_EACH) for tenant in (HEAVY, LIGHT)])
    differences = [0.0]
    change_after = matrix.arriving_jobs // 2 if has_change else math.inf
    while len(simulator.ended) < matrix.arriving_jobs:
        simulator.run(until=simulator.now + _LOOK_EVERY_S)
        served = {HEAVY: 0.0, LIGHT: 0.0}
        for worker in simulator.workers:
            for tenant, service in worker.served(simulator.now).items():
                served[tenant] += service
        differences.append(served[HEAVY] - served[LIGHT])
        if len(simulator.ended) >= change_after:
            simulator.change_leader()
            change_after = math.inf
    most = max(goals.PROMPT_WEIGHT * MAX_TOKENS, goals.OUTPUT_WEIGHT * pool.kv_tokens)
    bound = 2 * most * pool.num_workers + simulator.policy.grouping_window
    return simulator, max(differences) - min(differences), bound


def flood(seed: int, matrix: Matrix, mix: str) -> Found:
    """Let one tenant submit thousands of jobs at once, another one now and then, all of one adapter."""
    figures: list[Figure] = []
    measured = []
    policies: dict[str, MakePolicy] = {OURS: Ours, "FIFO": RIVALS["FIFO"]}
    for name, make in policies.items():
        simulator, jobs, passed = _flood(seed, matrix, mix, make)
        if name == OURS:
            figures.append(_figure(goals.FLOODED_WAIT, mix, passed, matrix.pool.num_workers))
        measured.append(measure(f"flooded: {mix}", name, simulator, jobs))
    return Found(figures, measured)


def _figure(goal: Goal, case: str, passed: list[int], num_workers: int) -> Figure:
    return Figure(goal, case, max(passed) / num_workers)


def _flood(seed: int, matrix: Matrix, mix: str, make: MakePolicy) -> tuple[Simulator, list[Job], list[int]]:
    """Return a run, the other tenant's jobs, and how many micro-batches went out while each waited."""
    heavy, light, due_s = MIXES[mix]
    population = Population(matrix.pool, HARDWARE, MIDDLE_SKEW, seed)
    simulator = Simulator(matrix.pool, HARDWARE, population.adapters, make)

    def jobs_of(tenant: str, priority: int, times: list[float]) -> list[Job]:
        jobs = [population.job(now, tenant=tenant, priority=priority) for now in times]
        for job in jobs:
            job.adapter = population.adapters[0]
        return jobs

    flooding = jobs_of(HEAVY, heavy, [0.0] * matrix.flood_jobs)
    for job in flooding:
        job.deadline_at = due_s
    others = jobs_of(LIGHT, light, [_FIRST_LIGHT_S + second for second in range(_NUM_LIGHT)])
    batches_at: dict[int, int] = {}

    def note(job: Job, now: float) -> None:  # noqa: ARG001 - what the simulator calls
        if job.tenant == LIGHT:
            batches_at[job.number] = simulator.num_batches

    simulator.on_dispatch = note
    simulator.submit(flooding)
    passed_before: dict[int, int] = {}
    for job in others:
        simulator.run(until=job.submitted_at)
        passed_before[job.number] = simulator.num_batches
        simulator.submit([job])
    simulator.run(until=_FLOOD_S)
    passed = [batches_at.get(job.number, simulator.num_batches) - passed_before[job.number] for job in others]
    return simulator, others, passed

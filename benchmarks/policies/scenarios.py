"""The workloads of the matrix: each runs ours and its rivals on equal jobs, and says what the goals ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from benchmarks.policies import goals
from benchmarks.policies.belady import least_bytes
from benchmarks.policies.goals import Matrix, Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.measures import Figure, Found, Loads, Measured, loads, measure, ratio, share
from benchmarks.policies.ours import Ours
from benchmarks.policies.policy import Policy, Setting
from benchmarks.policies.rivals.dlora import DLoRA
from benchmarks.policies.rivals.edf import ClairvoyantEdf
from benchmarks.policies.rivals.fifo import Fifo, FifoLru
from benchmarks.policies.rivals.slora import SLoRA
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Job, Population

MakePolicy = Callable[[Setting], Policy]

OURS: Final = "ours"
RIVALS: Final[dict[str, MakePolicy]] = {
    "FIFO": Fifo,
    "FIFO + LRU": FifoLru,
    "S-LoRA": SLoRA,
    "dLoRA": DLoRA,
}
ALL_RESIDENT: Final = "ours, all resident"
EDF: Final = "clairvoyant EDF"
MIDDLE_SKEW: Final = 0.6
"""Of the adapters where arrivals are what is varied."""
_SLO_LOADS: Final = (0.01, 2.0)
"""Between these lies the load at which FIFO attains half of the SLOs."""
HARDWARE: Final = Hardware()


def standing(seed: int, matrix: Matrix, skew: float) -> Found:
    """Keep the backlog full: bytes beside rivals and Belady, throughput beside all adapters resident."""
    case = f"a = {skew}"
    workload = f"standing backlog, {case}"
    policies: dict[str, MakePolicy] = {OURS: Ours, **RIVALS}
    runs = {name: _stand(seed, matrix, skew, make) for name, make in policies.items()}
    runs[ALL_RESIDENT] = _stand(seed, matrix, skew, Ours, _resident(matrix.pool))
    ours = runs[OURS]
    spent = {name: run.spent for name, run in runs.items()}
    least = _least(ours.simulator)
    whole = loads(ours.simulator)
    tiers = (("slots", 0), ("store", 1))
    figures = [
        *(_bytes(goals.BYTES_TO_SLORA, case, tier, spent[OURS], spent["S-LoRA"]) for tier in tiers),
        *(_bytes(goals.BYTES_TO_LRU, case, tier, spent[OURS], spent["FIFO + LRU"]) for tier in tiers),
        *(_bytes(goals.BYTES_TO_BELADY, case, tier, whole, least) for tier in tiers),
        Figure(goals.THROUGHPUT, case, ratio(ours.tokens_per_s, runs[ALL_RESIDENT].tokens_per_s)),
    ]
    return Found(figures, [run.measured(workload, name) for name, run in runs.items()])


def quiet(seed: int, matrix: Matrix, skew: float) -> Found:
    """Let jobs arrive at half of what the pool can do: ours must not load more than LRU does."""
    case = f"a = {skew}"
    spent: dict[str, Loads] = {}
    measured = []
    policies: dict[str, MakePolicy] = {OURS: Ours, "FIFO + LRU": FifoLru}
    for name, make in policies.items():
        simulator = arrive(seed, matrix, skew, goals.QUIET_LOAD, 1.0, make)
        spent[name] = loads(simulator)
        measured.append(measure(f"load {goals.QUIET_LOAD}, {case}", name, simulator, simulator.jobs))
    tiers = (("slots", 0), ("store", 1))
    figures = [
        _bytes(goals.QUIET_BYTES_TO_LRU, case, tier, spent[OURS], spent["FIFO + LRU"]) for tier in tiers
    ]
    return Found(figures, measured)


def deadlines(seed: int, matrix: Matrix, load: float, cv: float) -> Found:
    """Let jobs with deadlines arrive: how many ours keeps beside a clairvoyant, and beside FIFO.

    The clairvoyant has every adapter in a slot: who knows the future has loaded each in time.
    """
    case = f"load {load}, cv {cv:g}"
    kept: dict[str, float] = {}
    measured = []
    pools = {EDF: _resident(matrix.pool)}
    policies: dict[str, MakePolicy] = {OURS: Ours, EDF: ClairvoyantEdf, "FIFO": Fifo, "FIFO + LRU": FifoLru}
    for name, make in policies.items():
        simulator = arrive(
            seed, matrix, MIDDLE_SKEW, load, cv, make, with_deadlines=True, pool=pools.get(name)
        )
        measured.append(measure(f"deadlines, {case}", name, simulator, simulator.jobs))
        kept[name] = measured[-1].score
    figures = [
        Figure(goals.DEADLINES_TO_EDF, case, ratio(kept[OURS], kept[EDF])),
        Figure(goals.DEADLINES_TO_FIFO, case, ratio(kept[OURS], kept["FIFO"])),
    ]
    return Found(figures, measured)


def slo(seed: int, matrix: Matrix, cv: float) -> Found:
    """Find the load at which FIFO attains half of the SLOs; what does ours attain there?"""
    low, high = _SLO_LOADS
    tried: dict[float, float] = {}
    for _ in range(matrix.slo_trials):
        trial = math.sqrt(low * high)
        tried[trial] = _slo_share(arrive(seed, matrix, MIDDLE_SKEW, trial, cv, Fifo))
        low, high = (trial, high) if tried[trial] > goals.SLO_SHARE_OF_FIFO else (low, trial)
    load = min(tried, key=lambda load: abs(tried[load] - goals.SLO_SHARE_OF_FIFO))
    measured = []
    shares: dict[str, float] = {}
    policies: dict[str, MakePolicy] = {OURS: Ours, "FIFO": Fifo}
    for name, make in policies.items():
        simulator = arrive(seed, matrix, MIDDLE_SKEW, load, cv, make)
        shares[name] = _slo_share(simulator)
        row = measure(f"SLO at FIFO's half, cv {cv:g}", name, simulator, simulator.jobs)
        measured.append(row._replace(score=shares[name]))
    return Found([Figure(goals.SLO_TO_FIFO, f"cv {cv:g}", ratio(shares[OURS], shares["FIFO"]))], measured)


def _slo_share(simulator: Simulator) -> float:
    """Return the share of jobs that ended within their adapter's SLO."""
    alone: dict[str, list[float]] = {}
    for job in simulator.jobs:
        alone.setdefault(job.adapter.name, []).append(job.alone_s)
    limits = {name: goals.SLO_SCALE * sum(times) / len(times) for name, times in alone.items()}
    return share(
        job.ended_at is not None and job.ended_at - job.submitted_at <= limits[job.adapter.name]
        for job in simulator.jobs
    )


class _Standing:
    """A run with a full backlog, measured from its warm-up on."""

    def __init__(self, simulator: Simulator, num_warming: int, num_ended: int) -> None:
        simulator.run(num_ended=num_warming)
        self.simulator, self._since, self._before = simulator, simulator.now, loads(simulator)
        simulator.run(num_ended=num_ended)
        self._jobs = simulator.ended[num_warming:num_ended]
        after = loads(simulator)
        self.spent = Loads(after.slots - self._before.slots, after.store - self._before.store)
        self.tokens_per_s = self.measured("", "").tokens_per_s

    def measured(self, workload: str, policy: str) -> Measured:
        """Measure the jobs that ended since the warm-up."""
        return measure(workload, policy, self.simulator, self._jobs, since=self._since, before=self._before)


def _stand(seed: int, matrix: Matrix, skew: float, make: MakePolicy, pool: Pool | None = None) -> _Standing:
    population = Population(matrix.pool, HARDWARE, skew, seed)
    simulator = Simulator(pool or matrix.pool, HARDWARE, population.adapters, make, replenish=population.job)
    simulator.submit([population.job(0.0) for _ in range(matrix.pool.backlog)])
    return _Standing(simulator, matrix.standing_jobs // 3, matrix.standing_jobs)


def arrive(
    seed: int,
    matrix: Matrix,
    skew: float,
    load: float,
    cv: float,
    make: MakePolicy,
    *,
    with_deadlines: bool = False,
    pool: Pool | None = None,
) -> Simulator:
    """Run jobs that arrive, until all have ended."""
    population = Population(matrix.pool, HARDWARE, skew, seed)
    jobs: list[Job] = population.arrivals(matrix.arriving_jobs, load, cv, with_deadlines=with_deadlines)
    simulator = Simulator(pool or matrix.pool, HARDWARE, population.adapters, make)
    simulator.submit(jobs)
    simulator.run()
    return simulator


def _resident(pool: Pool) -> Pool:
    """Return the pool with every adapter in a slot of every worker."""
    return replace(pool, slots=pool.num_adapters, host_adapters=pool.num_adapters)


def _bytes(goal: goals.Goal, case: str, tier: tuple[str, int], ours: Loads, base: Loads) -> Figure:
    name, index = tier
    return Figure(goal, f"{case}, {name}", ratio(ours[index], base[index]))


def _least(simulator: Simulator) -> Loads:
    """Return what each worker would have loaded at least for the jobs that it was given, in their order."""
    pool: Pool = simulator.pool
    slots = store = 0
    for worker in simulator.workers:
        slots += least_bytes(worker.order, pool.slots, worker.residency.warm_slots)
        store += least_bytes(worker.order, pool.host_adapters, worker.residency.warm_host)
    return Loads(slots, store)

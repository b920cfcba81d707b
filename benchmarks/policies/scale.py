"""Pools of growing size, to see that neither the policy nor the simulator gives way: `--full`."""

from __future__ import annotations

import sys
import time
from typing import Final, NamedTuple

from benchmarks.policies.goals import Pool
from benchmarks.policies.measures import Found, Measured, measure
from benchmarks.policies.ours import Ours
from benchmarks.policies.scenarios import HARDWARE, MIDDLE_SKEW, OURS, RIVALS, MakePolicy
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Population

_LOAD: Final = 0.9


class Size(NamedTuple):
    """Of a pool, and how many jobs it is given."""

    num_workers: int
    num_adapters: int
    num_jobs: int


SIZES: Final = (Size(10, 1_000, 10_000), Size(100, 3_000, 100_000), Size(1_000, 10_000, 1_000_000))


def grow(sizes: tuple[Size, ...] = SIZES) -> list[Found]:
    """Run arrivals on pools of these sizes; what each run costs goes to standard error."""
    measured: list[Measured] = []
    policies: dict[str, MakePolicy] = {OURS: Ours, "FIFO + LRU": RIVALS["FIFO + LRU"]}
    for size in sizes:
        pool = Pool(num_workers=size.num_workers, num_adapters=size.num_adapters)
        for name, make in policies.items():
            population = Population(pool, HARDWARE, MIDDLE_SKEW, 1)
            simulator = Simulator(pool, HARDWARE, population.adapters, make)
            simulator.submit(population.arrivals(size.num_jobs, _LOAD, 1.0))
            began = time.process_time()
            simulator.run()
            spent_s = time.process_time() - began
            workload = f"{size.num_workers:,} workers, {size.num_adapters:,} adapters, {size.num_jobs:,} jobs"
            measured.append(measure(workload, name, simulator, simulator.jobs))
            print(
                f"{workload}, {name}: {spent_s:.0f} s, {simulator.num_events / spent_s:,.0f} events/s, "
                f"{1e3 * simulator.plan_s / simulator.num_batches:.2f} ms a micro-batch",
                file=sys.stderr,
                flush=True,
            )
    return [Found([], measured)]

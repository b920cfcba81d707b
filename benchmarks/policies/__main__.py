"""Compares our policy with its rivals in a simulated pool: `python -m benchmarks.policies`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.machine import describe_run, load_average
from benchmarks.policies import goals
from benchmarks.policies.forecasts import decisions, forecasts
from benchmarks.policies.goals import Matrix
from benchmarks.policies.measures import Found
from benchmarks.policies.report import judge, to_markdown
from benchmarks.policies.scale import grow
from benchmarks.policies.scenarios import deadlines, quiet, slo, standing
from benchmarks.policies.tenants import MIXES, flood, service_gap

_RESULTS = Path(__file__).parent.parent / "results"
Task = Callable[[], Found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix, print the report; returns 1 if a goal is missed."""
    options = _parser().parse_args(arguments)
    if options.plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--plots needs matplotlib, which is not installed: pip install 'lorayard[plots]'")
    began, load_before = time.monotonic(), load_average()
    found = _run(_tasks(options), options.processes)
    if options.full:
        found += grow()
    judged = judge(figure for one in found for figure in one.figures)
    measured = [row for one in found for row in one.measured]
    facts = describe_run([], num_threads=options.processes)
    facts |= {
        "seeds": ", ".join(map(str, options.seeds)),
        "workloads": ", ".join(options.only),
        "time": f"{time.monotonic() - began:.0f} s in {options.processes} processes",
        "load before and after": f"{load_before}, {load_average()}",
    }
    report = to_markdown("Policies in a simulated pool", facts, judged, measured)
    print(report)
    if options.write is not None:
        path = _RESULTS / f"{options.write}.md"
        path.write_text(report)
        print(f"written to {path}")
    if options.plots is not None:
        from benchmarks.policies.plots import draw  # needs an extra

        print("\n".join(f"drawn to {path}" for path in draw(options.plots, measured)))
    return 0 if all(one.is_met for one in judged) else 1


def _run(tasks: Sequence[Task], num_processes: int) -> list[Found]:
    with ProcessPoolExecutor(num_processes) as pool:
        futures = [pool.submit(task) for task in tasks]
        found = []
        for number, future in enumerate(futures, start=1):
            found.append(future.result())
            print(f"{number} of {len(futures)} workloads", file=sys.stderr, flush=True)
        return found


def _tasks(options: argparse.Namespace) -> list[Task]:
    matrix = Matrix()
    of_seed: dict[str, list[Callable[[int, Matrix], Found]]] = {
        "standing": [partial(standing, skew=skew) for skew in goals.SKEWS],
        "quiet": [partial(quiet, skew=skew) for skew in goals.SKEWS],
        "deadlines": [
            partial(deadlines, load=load, cv=cv) for load in goals.DEADLINE_LOADS for cv in goals.CVS
        ],
        "slo": [partial(slo, cv=cv) for cv in goals.CVS],
        "fairness": [partial(service_gap, has_change=has_change) for has_change in (False, True)],
        "flood": [partial(flood, mix=mix) for mix in MIXES],
        "forecasts": [partial(forecasts, load=load) for load in goals.QUEUE_LOADS],
    }
    tasks: list[Task] = [
        partial(workload, seed, matrix)
        for name, workloads in of_seed.items()
        if name in options.only
        for workload in workloads
        for seed in options.seeds
    ]
    if "decisions" in options.only:
        tasks.append(partial(decisions, matrix))
    return tasks


_WORKLOADS = ("standing", "quiet", "deadlines", "slo", "fairness", "flood", "forecasts", "decisions")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(goals.SEEDS), help="default: 1 to 10")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=_WORKLOADS,
        default=list(_WORKLOADS),
        metavar="WORKLOAD",
        help=f"some of {', '.join(_WORKLOADS)}",
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="default: one for each core"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="then grow to 10,000 adapters, 1,000 workers and 1,000,000 jobs; takes hours",
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw pictures (extra `plots`)")
    parser.add_argument("--write", metavar="NAME", help="keep the report as results/NAME.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

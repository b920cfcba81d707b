"""Time every op at its reference shape, beside its floor: `python -m benchmarks.kernels [OP]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.kernels.cases import CASES, Call, Make, Shapes
from benchmarks.machine import describe_run, load_average
from benchmarks.report import Row, table
from benchmarks.workload import Geometry
from kernels.ops import LEVELS, OPS
from kernels.registry import Kernels, build

_RESULTS = Path(__file__).parents[1] / "results"
_ROTATED_BYTES = 96 << 20
"""Calls take turns on data of this size together, so that no cache holds it until the next turn."""
_MAX_COPIES = 1024
_SMALL = Shapes(Geometry(1, 64, 4, 2, 16, 96, 128, 64), num_rows=4, num_adapters=2, rank=4, context=32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the ops asked for and print a row for each."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    kernels = build("cpu", getattr(torch, options.dtype), options.level)
    facts = describe_run([f"kernels {kernels.level}"], num_threads=torch.get_num_threads())
    load_before = load_average()
    bytes_per_s = _copy_bandwidth(1 << 20 if options.small else 64 << 20, options.repeats)
    rows: list[Row] = [["op", "case", "us", "floor KB", "floor us", "time / floor"]]
    for name in [options.op] if options.op else [op.name for op in OPS]:
        for shapes in _shapes(name, _SMALL if options.small else Shapes()):
            if getattr(kernels, name) is None:
                rows.append([name, f"not at level {kernels.level}", "", "", "", ""])
                continue
            rows.append([name, *_measure(CASES[name], kernels, shapes, bytes_per_s, options.repeats)])
    facts["load before and after"] = f"{load_before}, {load_average()}"
    report = _report(facts, options.dtype, bytes_per_s, rows)
    print(report)
    if options.write is not None:
        path = _RESULTS / f"{options.write}.md"
        path.write_text(report)
        print(f"written to {path}")
    return 0


def _shapes(op: str, shapes: Shapes) -> list[Shapes]:
    """Return what an op is measured on; LoRA also with an adapter for every row, and with wide ones."""
    if op != "lora_add":
        return [shapes]
    many = replace(shapes, num_adapters=shapes.num_rows)
    return [shapes, many, replace(shapes, rank=4 * shapes.rank)]


def _measure(make: Make, kernels: Kernels, shapes: Shapes, bytes_per_s: float, repeats: int) -> Row:
    generator = torch.Generator().manual_seed(1)
    first = make(kernels, shapes, generator)
    num_copies = max(1, min(_MAX_COPIES, _ROTATED_BYTES // first.floor_bytes))
    calls = [first, *(make(kernels, shapes, generator) for _ in range(num_copies - 1))]
    with torch.inference_mode():
        best_s = min(_round_s(calls) for _ in range(repeats))
    floor_s = first.floor_bytes / bytes_per_s
    return [
        first.what,
        f"{best_s * 1e6:.1f}",
        f"{first.floor_bytes / 1e3:.0f}",
        f"{floor_s * 1e6:.1f}",
        f"{best_s / floor_s:.2f}",
    ]


def _round_s(calls: list[Call]) -> float:
    """Return the mean time of one call."""
    began_s = time.perf_counter()
    for call in calls:
        call.run()
    return (time.perf_counter() - began_s) / len(calls)


def _copy_bandwidth(num_bytes: int, repeats: int) -> float:
    """Return bytes read and written per second by torch's own copy, best of the repeats."""
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    best_s = float("inf")
    for _ in range(repeats):
        began_s = time.perf_counter()
        target.copy_(source)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * num_bytes / best_s


def _report(facts: dict[str, str], dtype: str, bytes_per_s: float, rows: list[Row]) -> str:
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    note = (
        f"{dtype}, weights and cache rotated beyond the caches; the floor is the time in which memory copies "
        f"as many bytes as the op must read and write ({bytes_per_s / 1e9:.1f} GB/s measured here)."
    )
    return f"# The kernels at the shapes of a decode step\n\n{told}\n\n{note}\n\n{table(rows)}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    add = parser.add_argument
    add("op", nargs="?", choices=[op.name for op in OPS], metavar="OP", help="one op; all without it")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--level", choices=LEVELS, help="of the CPU's kernels; the best without it")
    add("--threads", type=int, metavar="N", help="as torch has them without it")
    add("--repeats", type=int, default=15, metavar="N", help="rounds, the best of which counts")
    add("--small", action="store_true", help="tiny shapes, to try the benchmark itself")
    add("--write", metavar="NAME", help="also write the report to benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

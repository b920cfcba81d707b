"""Check and measure the engine on a card: `python -m benchmarks.gpu --out DIR [--stages A,B] [--rehearse]`.

Stages run one after another in processes of their own, each with a limit. What they find is in
DIR/results.jsonl at once, what they print in DIR/log.txt; the report is printed and written to DIR/report.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.records import RESULTS, Recorder, read
from benchmarks.gpu.stages import SHARES_S, run_stage
from benchmarks.gpu.summary import summarize

_LOG_LINES = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for; the exit status is 1 if something failed or was wrong."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage is not None:
        return run_stage(options.stage, options.out, rehearse=options.rehearse)
    names = options.stages.split(",")
    unknown = [name for name in names if name not in SHARES_S]
    if unknown:
        print(f"no stage {', '.join(unknown)}; there are {', '.join(SHARES_S)}", file=sys.stderr)
        return 2
    (options.out / RESULTS).unlink(missing_ok=True)
    (options.out / "log.txt").unlink(missing_ok=True)
    end_s = time.monotonic() + options.seconds
    for index, name in enumerate(names):
        share = SHARES_S[name] / sum(SHARES_S[one] for one in names[index:])
        _run(name, options.out, share * (end_s - time.monotonic()), rehearse=options.rehearse)
    records = read(options.out)
    (options.out / "report.md").write_text(summarize(records, max_failures=1000, max_figures=10_000))
    print(summarize(records, max_failures=5, max_figures=60))
    is_right = all(
        one["kind"] != "failure" and one.get("passed", True) and one.get("outcome", "done") == "done"
        for one in records
    )
    return 0 if is_right else 1


def _run(name: str, folder: Path, limit_s: float, *, rehearse: bool) -> None:
    """Run a stage in a process group of its own, which ends with its time."""
    recorder, began_s = Recorder(folder, name), time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(folder), "--stage", name]
    environment = dict(os.environ)
    if rehearse:
        command.append("--rehearse")
        # Triton reads it when it is imported.
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        print(f"=== {name}, at most {limit_s:.0f} s", file=log, flush=True)
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(max(limit_s, 1))
            outcome = "done" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            outcome = f"cut off after {limit_s:.0f} s"
        _end_group(process)
    if outcome != "done":
        tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-_LOG_LINES:]
        recorder.failure(f"{name} {outcome}", "\n".join(tail))
    recorder.ended(time.monotonic() - began_s, outcome)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the stage started and has not ended itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where results, log and report are written")
    add("--stages", default=",".join(SHARES_S), metavar="A,B", help=f"of {', '.join(SHARES_S)}")
    add("--seconds", type=float, default=480, metavar="N", help="for all stages together")
    add("--rehearse", action="store_true", help="on the CPU, in Triton's interpreter, with tiny shapes")
    add("--stage", choices=list(SHARES_S), help=argparse.SUPPRESS)  # runs in this process
    return parser


if __name__ == "__main__":
    sys.exit(main())

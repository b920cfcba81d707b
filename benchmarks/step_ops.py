"""Where a step's processor time goes, op by op: `python -m benchmarks.step_ops --prompt 512`.

One engine of the reference geometry reads prompts or decodes; each op that torch dispatches is timed by
itself, in processor time of this thread, which others on the machine lengthen little. What the engine does
between the ops is the last row.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.checkpoint_files import CACHE, checkpoint_folder
from benchmarks.machine import describe_run
from benchmarks.report import Row, table
from benchmarks.workload import Geometry
from workers.engine import EngineConfig, LLMEngine, SamplingParams


class OpTimes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up processor seconds and calls by op while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        began_s = time.thread_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func)] += time.thread_time() - began_s
        self.calls[str(func)] += 1
        return result


def main() -> None:
    """Print the machine and a row for each op."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_ops", description=__doc__)
    parser.add_argument("--prompt", type=int, default=32, metavar="N", help="tokens of each prompt")
    parser.add_argument("--requests", type=int, default=1, metavar="N")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="timed; prompts come first")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="steps before; 1: decode alone")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    options = parser.parse_args()
    geometry = Geometry()
    config = EngineConfig(
        str(checkpoint_folder(options.cache, geometry, 0)),
        dtype=options.dtype,
        max_num_batched_tokens=max(2048, options.prompt * options.requests),
        num_threads=1,
    )
    with LLMEngine(config) as engine:
        params = SamplingParams(max_tokens=options.skip + options.steps, temperature=0.0, ignore_eos=True)
        for number in range(options.requests):
            first = 5 + number * 1009
            prompt = [(first + 7 * at) % (geometry.vocab_size - 10) + 5 for at in range(options.prompt)]
            engine.add_request(str(number), prompt, params)
        for _ in range(options.skip):
            engine.step()
        times = OpTimes()
        began_s = time.thread_time()
        with times:
            for _ in range(options.steps):
                engine.step()
        whole_s = time.thread_time() - began_s
    facts = describe_run([f"kernels {engine.info.cpu_kernels}"], num_threads=1)
    print("\n".join(f"- {name}: {value}" for name, value in facts.items() if value))
    print(f"\n{options.requests} requests, prompts of {options.prompt}, {options.steps} steps, a step's ms\n")
    print(table(_rows(times, whole_s, options.steps)))


def _rows(times: OpTimes, whole_s: float, num_steps: int) -> list[Row]:
    rows: list[Row] = [["op", "calls", "ms", "share"]]
    between_s = whole_s - sum(times.seconds.values())
    for name, seconds in [*Counter(times.seconds).most_common(12), ("between ops", between_s)]:
        calls = times.calls[name] // num_steps
        rows.append([name, str(calls), f"{1000 * seconds / num_steps:.2f}", f"{seconds / whole_s:.1%}"])
    rows.append(["all", "", f"{1000 * whole_s / num_steps:.2f}", ""])
    return rows


if __name__ == "__main__":
    main()

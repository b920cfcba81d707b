"""What `batch_invariant` costs, by turns with and without it: `python -m benchmarks.batch_invariant`."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.checkpoint_files import CACHE, checkpoint_folder
from benchmarks.machine import describe_run, load_average
from benchmarks.workload import Geometry
from kernels.cpu.library import LEVELS, level, use_level
from workers.engine import EngineConfig, LLMEngine, SamplingParams


class Case(NamedTuple):
    """Requests that arrive at once."""

    name: str
    num_requests: int
    prompt_len: int
    num_new_tokens: int


CASES = (
    Case("decoding, 1 request", 1, 8, 24),
    Case("decoding, 8 requests", 8, 8, 24),
    Case("decoding, 32 requests", 32, 8, 24),
    Case("reading 4 prompts of 512 tokens", 4, 512, 1),
)


def main() -> None:
    """Print a table of ratios of processor time, each engine's least of all rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_invariant", description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="both if not given")
    parser.add_argument("--level", choices=LEVELS, default=level(), help="of the CPU's kernels")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="after one to warm up, by turns")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    options = parser.parse_args()
    base = checkpoint_folder(options.cache, Geometry(), 0)
    facts = describe_run([], num_threads=options.threads)
    print(f"{facts['machine']}; {facts['date']}, level {options.level}, load {load_average()}\n")
    print("| dtype | case | without, ms | with / without, least | median |\n|---|---|---|---|---|")
    for dtype in options.dtype or ["float32", "bfloat16"]:
        with use_level(options.level):
            engines = [_engine(base, dtype, options.threads, is_on) for is_on in (False, True)]
        for case in CASES:
            rounds = list(_rounds(engines, case, options.rounds))
            least = [min(times) for times in zip(*rounds, strict=True)]
            ratio = median(on / off for off, on in rounds)
            row = f"{least[0]:.0f} | {least[1] / least[0]:.2f} | {ratio:.2f}"
            print(f"| {dtype} | {case.name} | {row} |", flush=True)
        for engine in engines:
            engine.close()


def _engine(base: Path, dtype: str, num_threads: int, batch_invariant: bool) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            str(base),
            dtype=dtype,
            num_threads=num_threads,
            batch_invariant=batch_invariant,
            enable_prefix_caching=False,
            kv_cache_bytes=1 << 28,
        )
    )


def _rounds(engines: list[LLMEngine], case: Case, num_rounds: int) -> Iterator[tuple[float, ...]]:
    """Yield milliseconds of processor time of each engine, round by round; trials are in none of them."""
    numbers = random.Random(0)
    params = SamplingParams(max_tokens=case.num_new_tokens, temperature=0.0, ignore_eos=True)
    for number in range(num_rounds + 1):
        prompts = [numbers.choices(range(3, 49152), k=case.prompt_len) for _ in range(case.num_requests)]
        times = []
        for engine in engines:
            began_s = time.process_time()
            engine.generate(list(prompts), params, use_tqdm=False)
            times.append((time.process_time() - began_s) * 1000.0)
        if number:
            yield tuple(times)


if __name__ == "__main__":
    main()

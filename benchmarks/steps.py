"""Compares the engine's steps with those of another checkout: `python -m benchmarks.steps --before FOLDER`.

Both serve the same requests, by turns, in processes of their own. What they do must be the same, step for
step; how long it takes is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_files import CACHE, checkpoint_folder
from benchmarks.machine import describe_run
from benchmarks.workload import Geometry

_TINY = Path(__file__).parents[1] / "examples" / "tiny"


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the limits it is served within, and what is asked of it."""

    name: str
    model: str
    adapters: list[str]
    vocab_size: int
    limits: dict[str, Any]
    num_requests: int
    num_new_tokens: int


def main() -> None:
    """Print a table: ratios of step times, and whether both checkouts did the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7, help="of each checkout, by turns")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    parser.add_argument("--case", choices=["tiny", "135M"], action="append", help="both unless given")
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    machine = describe_run([], num_threads=1)["machine"]
    print(f"{machine}; one thread, {options.rounds} rounds each, medians of a step\n")
    print("| case | steps | rows | preemptions | told | same | ms | CPU | wall | least CPU | least wall |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.case or ["tiny", "135M"]:
        case = _tiny() if name == "tiny" else _geometry(options.cache)
        with Child(options.before.resolve(), case) as before, Child(here, case) as after:
            pairs = [(before.round(), after.round()) for _ in range(options.rounds + 1)][1:]
        print(_row(case.name, pairs), flush=True)


def _row(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    did = pairs[-1][0]
    is_same = all(before["trace"] == after["trace"] for before, after in pairs)
    before_ms = statistics.median(ms for before, _ in pairs for ms in before["cpu_ms"])
    medians = [_ratio(pairs, clock, statistics.median) for clock in ("cpu_ms", "wall_ms")]
    least = [_ratio(pairs, clock, min) for clock in ("cpu_ms", "wall_ms")]
    counts = " | ".join(str(did[what]) for what in ("steps", "rows", "preemptions", "told"))
    ratios = " | ".join(f"{ratio:.3f}" for ratio in (*medians, *least))
    return f"| {name} | {counts} | {'yes' if is_same else 'NO'} | {before_ms:.3f} | {ratios} |"


def _ratio(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], clock: str, pick: Callable[[list[float]], float]
) -> float:
    """Return by how much all steps take longer; `pick` chooses a step's time among those of all rounds.

    A step does the same in each round: its least time is the one that others on the machine disturbed least.
    """
    before, after = (
        sum(pick(list(times)) for times in zip(*(pair[side][clock] for pair in pairs), strict=True))
        for side in (0, 1)
    )
    return after / before


class Child:
    """One checkout, serving rounds when it is asked to."""

    def __init__(self, checkout: Path, case: Case) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(_plain(case))],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def round(self) -> dict[str, Any]:
        """Serve all requests once; return what was done and the median time of a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        lines = iter(self._process.stdout.readline, "")
        found: dict[str, Any] = json.loads(
            next(line for line in lines if line.startswith("{"))
        )  # the log too
        return found


def serve_rounds(case: Case) -> Iterator[dict[str, Any]]:
    """Serve the case's requests whenever asked; the engine is that of the checkout in `sys.path`."""
    from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutputKind, SamplingParams

    engine = LLMEngine(EngineConfig(case.model, num_threads=1, **case.limits))
    loras = [LoRARequest(Path(one).name, at, one) for at, one in enumerate(case.adapters, 1)]
    for lora in loras:
        engine.add_lora(lora)
    batcher, schedule = engine._parts.batcher, engine._parts.batcher.schedule
    rows: list[list[Any]] = []

    def watch() -> Any:
        step = schedule()
        rows.append([[row.sequence.request_id, row.num_tokens] for row in step.rows])
        return step

    batcher.schedule = watch  # type: ignore[method-assign]
    params = SamplingParams(
        max_tokens=case.num_new_tokens,
        temperature=0.0,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    for number, _ in enumerate(sys.stdin):
        preemptions, trace, told = batcher.num_preemptions, blake2b(), 0
        wall_ms, cpu_ms = [], []
        rows.clear()
        coming = list(range(case.num_requests))
        step = 0
        while coming or engine.has_unfinished_requests():
            while coming and coming[0] * 2 <= step:
                at = coming.pop(0)
                first = number * 1009 + at * 31
                prompt = [(first + 7 * one) % (case.vocab_size - 10) + 5 for one in range(5 + at * 13 % 80)]
                asked = [None, *loras][at % (len(loras) + 1)]
                engine.add_request(str(at), prompt, params, asked)
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            outputs = engine.step()
            cpu_ms.append((time.process_time() - began_cpu_s) * 1000)
            wall_ms.append((time.perf_counter() - began_s) * 1000)
            told += sum(len(part.token_ids) for one in outputs if not one.finished for part in one.outputs)
            seen = [[one.request_id, one.finished, one.outputs[0].token_ids] for one in outputs]
            state = [rows[-1], seen, batcher.num_preemptions - preemptions, engine._parts.allocator.num_free]
            trace.update(json.dumps(state).encode())
            step += 1
        yield {
            "steps": step,
            "rows": sum(num_tokens for one in rows for _, num_tokens in one),
            "preemptions": batcher.num_preemptions - preemptions,
            "told": told,
            "trace": trace.hexdigest()[:16],
            "cpu_ms": cpu_ms,
            "wall_ms": wall_ms,
        }


def _tiny() -> Case:
    adapters = [str(_TINY / "adapters" / name) for name in ("upper", "reverse", "sort")]
    limits = {
        "enable_lora": True,
        "max_loras": 4,
        "lora_load_timeout_s": 600.0,
        "max_num_seqs": 16,
        "max_model_len": 128,
        "num_kv_blocks": 60,
        "max_num_batched_tokens": 64,
    }
    return Case("tiny, float32", str(_TINY / "base"), adapters, 100, limits, 40, 40)


def _geometry(cache: Path) -> Case:
    geometry = Geometry()
    base = checkpoint_folder(cache, geometry, 0)
    limits = {
        "dtype": "bfloat16",
        "max_num_seqs": 8,
        "max_model_len": 128,
        "num_kv_blocks": 20,
        "max_num_batched_tokens": 64,
    }
    return Case("135M, bfloat16", str(base), [], geometry.vocab_size, limits, 8, 16)


def _plain(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Case.__slots__}


_CHILD = f"""
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("steps", {str(Path(__file__).resolve())!r})
steps = sys.modules["steps"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(steps)
for found in steps.serve_rounds(steps.Case(**json.loads(sys.argv[1]))):
    print(json.dumps(found), flush=True)
"""


if __name__ == "__main__":
    main()

"""What adapters cost beside the base, and how long they take to be ready: `python -m benchmarks.adapters`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import structlog

from benchmarks.adapter_cases import (
    Activation,
    Case,
    Loading,
    Measured,
    Steps,
    Timing,
    make_cases,
    to_markdown,
)
from benchmarks.checkpoint_files import CACHE, adapter_folders, checkpoint_folder
from benchmarks.machine import describe_run, load_average
from benchmarks.workload import Geometry, Workload
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.lora import AdapterStats

_RESULTS = Path(__file__).parent / "results"
_TINY = Geometry(
    num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=256
)
_ACTIVATIONS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and upon which model."""

    geometry: Geometry
    counts: tuple[int, ...]
    ranks: tuple[int, ...]
    num_rounds: int
    workload: Workload
    cache: Path
    num_threads: int

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        return checkpoint_folder(self.cache, self.geometry, self.workload.seed)

    def adapters(self, rank: int) -> list[LoRARequest]:
        """Return as many adapters of a rank as any case has."""
        folders = adapter_folders(
            self.cache,
            self.base,
            self.geometry,
            rank=rank,
            num_adapters=max(*self.counts, 2),
            seed=self.workload.seed,
        )
        return [
            LoRARequest(f"adapter-{number}", number, str(folder))
            for number, folder in enumerate(folders, start=1)
        ]

    def engine(self, **settings: int | bool) -> LLMEngine:
        """Start an engine on the base."""
        return LLMEngine(
            EngineConfig(
                model=str(self.base),
                dtype="bfloat16",
                max_num_seqs=self.workload.num_requests,
                num_threads=self.num_threads,
                **settings,  # type: ignore[arg-type]  # names and types are those of the callers below
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it if asked to; returns the exit status."""
    options = _parser().parse_args(arguments)
    plan = _plan(options)
    load_before = load_average()
    measured: list[Measured] = []
    activations: dict[int, Activation] = {}
    loadings: dict[int, Loading] = {}
    with plan.engine() as base:
        for rank in plan.ranks:
            measured += _measure_rank(plan, rank, base)
            activations[rank] = _measure_activation(plan, rank)
            loadings[rank] = _measure_loading(plan, rank)
    facts = describe_run([], num_threads=plan.num_threads)
    facts |= {
        "workload": _describe(plan),
        "load before and after": f"{load_before}, {load_average()}",
    }
    report = to_markdown(facts, measured, activations, loadings)
    print(report)
    if options.write is not None:
        path = _RESULTS / f"{options.write}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report)
        print(f"written to {path}")
    return 0


def _measure_rank(plan: Plan, rank: int, base: LLMEngine) -> list[Measured]:
    """Serve every case of a rank beside the base, adapters in their slots before the clock starts."""
    adapters = plan.adapters(rank)
    settings = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
    with plan.engine(**settings) as engine:
        for adapter in adapters:
            engine.add_lora(adapter)
        return [_measure_case(plan, case, base, engine, adapters) for case in make_cases(plan.counts, [rank])]


def _measure_case(
    plan: Plan, case: Case, base: LLMEngine, engine: LLMEngine, adapters: list[LoRARequest]
) -> Measured:
    print(f"rank {case.rank}, {case.num_adapters} adapters, {case.popularity}", file=sys.stderr, flush=True)
    chosen = case.adapters(plan.workload.num_requests, plan.workload.seed)
    loras = [adapters[number] for number in chosen]
    rounds = []
    for number in range(plan.num_rounds + 1):
        pair = _serve(plan, base, None, number), _serve(plan, engine, loras, number)
        if number:  # the first warms up
            rounds.append(pair)
    return Measured(case, rounds, len(set(chosen)))


def _serve(plan: Plan, engine: LLMEngine, loras: list[LoRARequest] | None, number: int) -> Timing:
    params = SamplingParams(max_tokens=plan.workload.num_new_tokens, temperature=0.0, ignore_eos=True)
    prompts = plan.workload.prompts(number)
    began_s = time.perf_counter()
    outputs = engine.generate(list(prompts), params, loras, use_tqdm=False)
    seconds = time.perf_counter() - began_s
    num_tokens = sum(output.metrics.num_completion_tokens for output in outputs)
    return Timing(num_tokens / seconds, median(map(_ttft_ms, outputs)), median(map(_itl_ms, outputs)))


def _ttft_ms(output: RequestOutput) -> float:
    metrics = output.metrics
    assert metrics.first_token_time_s is not None, output.error
    return (metrics.first_token_time_s - metrics.arrival_time_s) * 1000.0


def _itl_ms(output: RequestOutput) -> float:
    metrics = output.metrics
    assert metrics.first_token_time_s is not None, output.error
    writing_ms = (metrics.finished_time_s - metrics.first_token_time_s) * 1000.0
    return writing_ms / (metrics.num_completion_tokens - 1)


def _measure_activation(plan: Plan, rank: int) -> Activation:
    """Let two adapters take turns in one slot, then load one anew; files are in the system's cache."""
    one, other = plan.adapters(rank)[:2]
    times: list[Activation] = []
    with plan.engine(enable_lora=True, max_loras=1, max_cpu_loras=2, max_lora_rank=rank) as engine:
        engine.add_lora(other)  # the loader process is up after this
        for _ in range(_ACTIVATIONS):
            disk_ms = _add_ms(engine, one)
            engine.add_lora(other)
            times.append(Activation(disk_ms, _add_ms(engine, one), _add_ms(engine, one)))
            engine.remove_lora(one.lora_int_id)
    return Activation(*map(median, zip(*times, strict=True)))


def _measure_loading(plan: Plan, rank: int) -> Loading:
    """Let requests of the base run alone, then while adapters load one after another into one place."""
    adapters = cycle(plan.adapters(rank))
    with plan.engine(enable_lora=True, max_loras=1, max_cpu_loras=1, max_lora_rank=rank) as engine:
        latest = next(adapters)
        engine.add_lora(latest)  # the loader process is up after this
        quiet = _decode(plan, engine, lambda: None)

        def keep_loading() -> None:
            nonlocal latest
            if not _adapter_stats(engine).num_loading:
                engine.remove_lora(latest.lora_int_id)
                latest = next(adapters)
                engine.prefetch(latest)

        loads_before = _adapter_stats(engine).loads
        loading = _decode(plan, engine, keep_loading)
        return Loading(quiet, loading, _adapter_stats(engine).loads - loads_before)


def _decode(plan: Plan, engine: LLMEngine, before_step: Callable[[], None]) -> Steps:
    params = SamplingParams(max_tokens=2 * plan.workload.num_new_tokens, temperature=0.0, ignore_eos=True)
    for number, prompt in enumerate(plan.workload.prompts(0)):
        engine.add_request(str(number), prompt, params)
    times_ms = []
    while engine.has_unfinished_requests():
        before_step()
        began_s = time.perf_counter()
        engine.step()
        times_ms.append((time.perf_counter() - began_s) * 1000.0)
    decoding_ms = times_ms[-plan.workload.num_new_tokens :]  # the first steps read prompts
    return Steps(median(decoding_ms), max(decoding_ms))


def _adapter_stats(engine: LLMEngine) -> AdapterStats:
    stats = engine.stats().adapters
    assert stats is not None, "this engine serves adapters"
    return stats


def _add_ms(engine: LLMEngine, adapter: LoRARequest) -> float:
    began_s = time.perf_counter()
    engine.add_lora(adapter)
    return (time.perf_counter() - began_s) * 1000.0


def _plan(options: argparse.Namespace) -> Plan:
    if options.quick:
        workload = Workload(0, num_requests=16, num_new_tokens=16)
        return Plan(_TINY, (1, 4, 16), (8, 64), options.rounds, workload, options.cache, options.threads)
    workload = Workload(0, num_requests=64)
    counts, ranks = (1, 4, 16, 64), (8, 16, 64)
    return Plan(Geometry(), counts, ranks, options.rounds, workload, options.cache, options.threads)


def _describe(plan: Plan) -> str:
    shape, workload = plan.geometry, plan.workload
    return (
        f"Llama of {shape.num_layers} layers, hidden size {shape.hidden_size}, bfloat16, random weights; "
        f"{workload.num_requests} requests at once, {workload.prompt_len} prompt tokens, "
        f"{workload.num_new_tokens} new ones each, greedy; adapters on all seven projections, in their slots "
        f"before the clock starts; {plan.num_rounds} rounds, base and adapters by turns"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters",
        description="Serve one workload with the base (LoRA off) and with 1 to 64 adapters of rank 8 to 64, "
        "evenly popular and by Zipf's law, and compare speed and latencies; time how long adapters take to "
        "get their slot from disk and from host memory.",
        epilog="Only ratios of one run may be compared. The first run writes a checkpoint and adapters, "
        "about 4 GB (--quick: 30 MB), into the cache folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, 16 adapters at most: a minute or two")
    add("--rounds", type=int, default=3, metavar="N", help="rounds per case, after one to warm up")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads of the engine")
    add("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where checkpoint and adapters are kept")
    add("--write", metavar="NAME", help="also write the report to benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    # A line for each adapter loaded would hide the report.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sys.exit(main())

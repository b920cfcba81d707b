"""Stage: requests for many adapters served whole, memory after many swaps, and transformers with PEFT."""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.feature_adapters import shipped
from benchmarks.gpu.folders import TINY, adapters, model_folder
from benchmarks.gpu.peft_in_turn import PeftInTurn
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.serving import engine_of, pool_bytes, prompt_of
from benchmarks.gpu.shapes import LLAMA_1B, TINY_ENGINE, Shapes, engine_shapes_of
from workers.engine import LLMEngine, LoRARequest, RequestOutputKind, SamplingParams

_FEW_SLOTS = 8
_NUM_SWAPS, _NUM_FIRST_SWAPS = 500, 40
_MOST_DEVICE_BYTES, _MOST_HOST_BYTES = 4 << 20, 32 << 20
_TABLE = "serving"


class Load(NamedTuple):
    """Requests that come all at once."""

    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int

    def prompts(self) -> list[list[int]]:
        """Return prompts that have no prefix in common."""
        return [prompt_of(row, self.num_prompt_tokens) for row in range(self.num_requests)]


def run(device: Device, recorder: Recorder) -> None:
    """Serve on slots for all adapters, swap on the tiny base, run the rival, serve on few slots."""
    shapes = engine_shapes_of(device)
    count, rank = shapes.adapter_counts[-1], shapes.ranks[0]
    loras = adapters(device, shapes, rank, count)
    load = Load(2, 4, 2) if device.is_rehearsal else Load(64, 256, 128)
    asked = zipf(loras, load.num_requests)
    name = f"{len(set(asked))} of {count} by Zipf's law"

    def serve(num_slots: int, case: str) -> None:
        """Serve the base, then the adapters; nothing refers to the engine afterwards."""
        with _engine(device, shapes, num_slots, count, rank) as engine:
            for lora in loras:
                engine.add_lora(lora)
            base = _serve(engine, recorder, f"base, {case}", load, [None])
            mixed = _serve(engine, recorder, f"{name}, {case}", load, asked)
        recorder.figure(f"seconds served with adapters / base, {case}", mixed / base, "x")

    with recorder.alone("a slot for each adapter"):
        serve(count, f"{count} slots")
    with recorder.alone("swaps"):
        _swap(device, recorder)
    with recorder.alone("transformers and PEFT"):
        _rival(device, recorder)
    if not device.is_rehearsal:
        with recorder.alone("few slots"):
            serve(_FEW_SLOTS, f"{_FEW_SLOTS} slots")


def zipf(loras: Sequence[LoRARequest], count: int) -> list[LoRARequest]:
    """Draw adapters whose popularity falls as 1 / rank."""
    weights = [1 / place for place in range(1, len(loras) + 1)]
    return random.Random(0).choices(loras, weights, k=count)


@contextmanager
def _engine(
    device: Device, shapes: Shapes, num_slots: int, num_on_host: int, rank: int, **more: Any
) -> Iterator[LLMEngine]:
    limits: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": num_slots,
        "max_cpu_loras": num_on_host,
        "max_lora_rank": max(rank, 16),
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "lora_pool_bytes": pool_bytes(device, shapes, max(rank, 16), num_slots),
    }
    if device.is_rehearsal:
        limits |= {"max_model_len": 64, "max_num_seqs": 2, "num_kv_blocks": 16}
    folder = model_folder(shapes, ties_head=more.pop("ties_head", False))
    with engine_of(device, str(folder), **limits, **more) as engine:
        yield engine


def _serve(
    engine: LLMEngine, recorder: Recorder, name: str, load: Load, loras: Sequence[LoRARequest | None]
) -> float:
    """Serve all requests, streaming; return the seconds."""
    params = SamplingParams(
        max_tokens=load.num_new_tokens,
        temperature=0.0,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    told_s: dict[str, list[float]] = defaultdict(list)
    began_s = time.perf_counter()
    for row, prompt in enumerate(load.prompts()):
        engine.add_request(f"serve-{row}", prompt, params, loras[row % len(loras)])
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now_s = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"{output.request_id}: {output.error.message}")
            if not output.finished:
                told_s[output.request_id].append(now_s)
    seconds = time.perf_counter() - began_s
    first_ms = sorted(1e3 * (times[0] - began_s) for times in told_s.values())
    between_ms = sorted(
        1e3 * (after - before) for times in told_s.values() for before, after in pairwise(times)
    )
    recorder.row(
        _TABLE,
        case=name,
        tokens_per_s=load.num_requests * load.num_new_tokens / seconds,
        ttft_p50_ms=statistics.median(first_ms),
        ttft_p99_ms=first_ms[int(0.99 * (len(first_ms) - 1))],
        itl_p50_ms=statistics.median(between_ms) if between_ms else None,
        itl_p99_ms=between_ms[int(0.99 * (len(between_ms) - 1))] if between_ms else None,
    )
    return seconds


def _swap(device: Device, recorder: Recorder) -> None:
    """Have ten adapters take turns on three slots; memory must not grow with the turns."""
    loras = list(shipped().values())
    first, count = (2, 4) if device.is_rehearsal else (_NUM_FIRST_SWAPS, _NUM_SWAPS)
    limits = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 16, "num_kv_blocks": 64}
    with engine_of(device, str(TINY / "base"), load_format="auto", **limits) as engine:
        for at in range(first):
            engine.add_lora(loras[at % len(loras)])
        before, began_s = _memory(device), time.perf_counter()
        for at in range(first, first + count):
            engine.add_lora(loras[at % len(loras)])
        each_ms = 1e3 * (time.perf_counter() - began_s) / count
        after = _memory(device)
        evictions = engine.stats().adapters
    assert evictions is not None, "the engine serves adapters"
    recorder.row("swaps on the tiny base", swaps=float(count), each_ms=each_ms, loads=float(evictions.loads))
    limits_bytes = (0, _MOST_DEVICE_BYTES, _MOST_HOST_BYTES)
    for name, limit, old, new in zip(
        ("torch's bytes", "card's bytes", "peak of the host"), limits_bytes, before, after, strict=True
    ):
        grown = new - old
        recorder.check(
            "memory",
            f"{count} swaps: growth of {name}",
            error=max(grown, 0),
            limit=limit,
            passed=grown <= limit,
        )


def _memory(device: Device) -> tuple[int, int, int]:
    """Return bytes that torch holds on the card, that the card has given out, and the process's peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.is_rehearsal:
        return 0, 0, peak
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.memory_allocated(), total - free, peak


def _rival(device: Device, recorder: Recorder) -> None:
    """Serve the same by transformers and PEFT, adapter by adapter, and by the engine in one batch."""
    shapes = TINY_ENGINE if device.is_rehearsal else LLAMA_1B
    count, rank = (2, 4) if device.is_rehearsal else (8, 16)
    load = Load(2, 4, 2) if device.is_rehearsal else Load(32, 128, 48)
    loras = adapters(device, shapes, rank, count)
    asked = [loras[row % count] for row in range(load.num_requests)]
    rival = PeftInTurn(device, shapes, loras)
    theirs_s = rival.serve(load.prompts(), asked, load.num_new_tokens)
    recorder.row(
        "beside a rival",
        case=f"{rival.name}, {count} adapters in turn",
        tokens_per_s=load.num_requests * load.num_new_tokens / theirs_s,
    )
    rival.close()
    with _engine(device, shapes, count, count, rank, ties_head=True) as engine:
        for lora in loras:
            engine.add_lora(lora)
        if not device.is_rehearsal:  # what is compiled at the first use is not counted
            _serve(engine, recorder, f"{shapes.num_layers} layers, base", load, [None])
        ours_s = _serve(engine, recorder, f"{shapes.num_layers} layers, {count} adapters", load, list(asked))
    recorder.row(
        "beside a rival",
        case=f"this engine, {count} adapters in one batch",
        tokens_per_s=load.num_requests * load.num_new_tokens / ours_s,
    )
    recorder.figure("seconds of this engine / transformers and PEFT", ours_s / theirs_s, "x")

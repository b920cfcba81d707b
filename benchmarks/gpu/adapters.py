"""Stage: how long an adapter takes from its files and from the host to the card, and what others pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import goals
from benchmarks.gpu.device import Device
from benchmarks.gpu.folders import adapters, model_folder
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.serving import Batch, StepClock, begin, engine_of, pool_bytes, prompt_of, stop
from benchmarks.gpu.shapes import Shapes, engine_shapes_of
from workers.engine import LLMEngine, LoRARequest, SamplingParams

_NUM_SLOTS, _NUM_TIMED, _NUM_LOADED, _NUM_QUIET = 4, 6, 20, 60
_PROMPT_TOKENS = 16


def run(device: Device, recorder: Recorder) -> None:
    """Measure activation by rank, then steps beside loads."""
    shapes = engine_shapes_of(device)
    largest = max(*shapes.ranks, 16)
    limits: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": _NUM_SLOTS,
        "max_cpu_loras": 64,
        "max_lora_rank": largest,
        "max_model_len": 2048,
    }
    if device.is_rehearsal:
        limits |= {"max_model_len": 64, "max_num_seqs": 2, "num_kv_blocks": 16}
    # With room between the slots' adapters, so that none waits for the arena.
    limits["lora_pool_bytes"] = pool_bytes(device, shapes, largest, 2 * _NUM_SLOTS)
    with engine_of(device, str(model_folder(shapes)), **limits) as engine:
        for rank in shapes.ranks:
            with recorder.alone(f"activation of rank {rank}"):
                _activate(device, recorder, shapes, engine, rank)
        with recorder.alone("steps while adapters load"):
            _beside_loads(device, recorder, shapes, engine)


def _activate(device: Device, recorder: Recorder, shapes: Shapes, engine: LLMEngine, rank: int) -> None:
    """Load more adapters than there are slots, then bring those that lost theirs back from the host."""
    loras = adapters(device, shapes, rank, _NUM_TIMED)
    from_files, load = [], []
    for lora in loras:
        before_ms = _load_ms(engine)
        from_files.append(_add_ms(engine, lora))
        load.append(_load_ms(engine) - before_ms)
    from_host = [_add_ms(engine, lora) for lora in loras[: _NUM_TIMED - _NUM_SLOTS + 1]]
    num_bytes = shapes.adapter_bytes(rank)
    activation_ms = statistics.median(from_host)
    recorder.row(
        "adapters, ms",
        rank=str(rank),
        mb=num_bytes / 1e6,
        from_files=statistics.median(from_files),
        load=statistics.median(load),
        from_host=activation_ms,
        host_gb_per_s=num_bytes / activation_ms / 1e6,
    )
    goal = goals.ACTIVATION_MS if rank == shapes.ranks[0] else None
    recorder.figure(f"activation of rank {rank} from the host", activation_ms, "ms", goal=goal)
    recorder.figure(f"add_lora of rank {rank} from files", statistics.median(from_files), "ms")


def _add_ms(engine: LLMEngine, lora: LoRARequest) -> float:
    began_s = time.perf_counter()
    if not engine.add_lora(lora):
        raise RuntimeError(f"{lora.lora_name} had a slot already: nothing was measured")
    return 1e3 * (time.perf_counter() - began_s)


def _load_ms(engine: LLMEngine) -> float:
    found = engine.stats().adapters
    assert found is not None, "the engine serves adapters"
    return found.load_ms


def _beside_loads(device: Device, recorder: Recorder, shapes: Shapes, engine: LLMEngine) -> None:
    """Time steps of a full batch of the base: alone, while files are read, while adapters join."""
    num_loaded, num_quiet = (1, 1) if device.is_rehearsal else (_NUM_LOADED, _NUM_QUIET)
    rank = shapes.ranks[0]
    loras = adapters(device, shapes, rank, _NUM_TIMED + num_loaded)[_NUM_TIMED:]
    # One row is left to those who come with adapters; the others decode to the end of the context.
    most = engine.info.max_model_len - _PROMPT_TOKENS - num_quiet - 8
    size = min(shapes.batches[-2] - 1, engine.info.max_num_seqs - 1) or 1
    batch = Batch(size, _PROMPT_TOKENS if not device.is_rehearsal else 4, num_quiet)
    begin(engine, batch, num_more_tokens=8 if device.is_rehearsal else most - 8)
    clock = StepClock(engine, device)
    for _ in range(1 if device.is_rehearsal else 4):
        clock.step()
    quiet = _steps(clock, num_quiet)
    for lora in loras:
        engine.prefetch(lora)
    loading = _steps_while(clock, lambda: engine.is_loading_adapters, most * 3 // 5)
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    waiting = set()
    for at, lora in enumerate(loras):
        engine.add_request(f"joins-{at}", prompt_of(at, 4), params, lora)
        waiting.add(f"joins-{at}")

    def is_waiting() -> bool:
        return bool(waiting)

    joining = _steps_while(clock, is_waiting, most // 4, waiting)
    clock.stop()
    stop(engine, batch)
    if waiting:
        recorder.failure("joining", f"{len(waiting)} of {num_loaded} requests with adapters had not ended")
    median_ms = statistics.median(quiet)
    for name, times in (("quiet", quiet), ("loading", loading), ("joining", joining)):
        recorder.row(
            f"steps of {size} rows beside adapters, ms",
            steps_while=name,
            steps=float(len(times)),
            median=statistics.median(times),
            p99=sorted(times)[int(0.99 * (len(times) - 1))],
            longest=max(times),
        )
        recorder.figure(
            f"longest step {name} / median quiet",
            max(times) / median_ms,
            "x",
            goal=None if name == "quiet" else goals.LONGEST_STEP,
        )


def _steps(clock: StepClock, count: int) -> list[float]:
    first = clock.num_steps
    for _ in range(count):
        clock.step()
    return [1e3 * one.wall_s for one in clock.times(first)]


def _steps_while(
    clock: StepClock, goes_on: Callable[[], bool], most: int, waiting: set[str] | None = None
) -> list[float]:
    """Run steps as long as something goes on, one of them in any case, `most` at the most."""
    first = clock.num_steps
    while clock.num_steps == first or (goes_on() and clock.num_steps - first < most):
        for output in clock.step():
            if waiting is not None and output.finished:
                waiting.discard(output.request_id)
    return [1e3 * one.wall_s for one in clock.times(first)]

"""Stage: where the wall time of three decode steps goes: kernels, gaps between them, and the host."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import Device
from benchmarks.gpu.folders import adapters, model_folder
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.serving import Batch, begin, engine_of, stop
from benchmarks.gpu.shapes import engine_shapes_of
from workers.engine import LLMEngine

TRACE = "trace.txt"
_NUM_TRACED, _NUM_PROFILED = 3, 20
"""Steps whose kernels are traced, and then steps in which the host is profiled."""
_MOST_KERNELS, _MOST_GAPS, _MOST_FUNCTIONS = 32, 22, 22


_DeviceType = torch.autograd.DeviceType  # type: ignore[attr-defined]


class Work(NamedTuple):
    """One kernel or copy on the device, in microseconds of the trace."""

    name: str
    begin_us: float
    end_us: float


def run(device: Device, recorder: Recorder) -> None:
    """Trace a batch of the base, then one with adapters; the text is `trace.txt` beside the results."""
    (recorder.folder / TRACE).unlink(missing_ok=True)
    shapes = engine_shapes_of(device)
    count, rank, size = shapes.adapter_counts[1], shapes.ranks[0], shapes.batches[-2]
    loras = adapters(device, shapes, rank, count)
    limits = {"enable_lora": True, "max_loras": count, "max_lora_rank": max(rank, 16), "max_num_seqs": 64}
    if device.is_rehearsal:
        limits |= {"max_model_len": 64, "max_num_seqs": 2, "num_kv_blocks": 16}
    with engine_of(device, str(model_folder(shapes)), **limits) as engine:
        for lora in loras:
            engine.add_lora(lora)
        num_prompt_tokens = 4 if device.is_rehearsal else shapes.contexts[0]
        cases = {"base": (None,), f"{count}xr{rank}": tuple(loras)}
        for name, used in list(cases.items())[1 if device.is_rehearsal else 0 :]:
            with recorder.alone(name):
                num_steps = 2 if device.is_rehearsal else _NUM_TRACED + _NUM_PROFILED
                batch = Batch(size, num_prompt_tokens, num_steps, used)
                _trace(engine, device, recorder, f"{name} b{size}", batch)


def _trace(engine: LLMEngine, device: Device, recorder: Recorder, name: str, batch: Batch) -> None:
    begin(engine, batch, num_more_tokens=5)
    num_prompt_steps = -(-batch.size * batch.num_prompt_tokens // engine.info.max_num_batched_tokens)
    num_traced = 1 if device.is_rehearsal else _NUM_TRACED
    for _ in range(num_prompt_steps * 5 // 4 + 1):
        engine.step()
    activity = ProfilerActivity.CPU if device.is_rehearsal else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        device.synchronize()
        for _ in range(num_traced):
            engine.step()
        device.synchronize()
    works = list(_works(profiler.events() or (), device))
    host = cProfile.Profile()
    host.enable()
    for _ in range(batch.num_steps - num_traced):
        engine.step()
    host.disable()
    stop(engine, batch)
    text = "\n".join([f"== {name}", *describe(works), "", *_functions(host, batch.num_steps - num_traced)])
    with (recorder.folder / TRACE).open("a") as file:
        file.write(text + "\n\n")
    busy_us = sum(end - begin for begin, end in _busy(works))
    span_us = max(one.end_us for one in works) - min(one.begin_us for one in works)
    recorder.row(
        "trace, ms a step",
        case=name,
        busy=busy_us / num_traced / 1e3,
        idle=(span_us - busy_us) / num_traced / 1e3,
        launched=len(works) / num_traced,
    )


def _works(events: Iterable[torch.autograd.profiler_util.FunctionEvent], device: Device) -> Iterator[Work]:
    kind = _DeviceType.CPU if device.is_rehearsal else _DeviceType.CUDA
    for event in events:
        if event.device_type == kind and not event.name.startswith("ProfilerStep"):
            yield Work(event.name, event.time_range.start, event.time_range.end)


def describe(works: Sequence[Work]) -> list[str]:
    """Return what the device did, by total time, and where it did nothing, by what came before and after."""
    totals: dict[str, float] = defaultdict(float)
    for work in works:
        totals[work.name] += work.end_us - work.begin_us
    counts = Counter(work.name for work in works)
    busy = _busy(works)
    busy_us, span_us = sum(end - begin for begin, end in busy), busy[-1][1] - busy[0][0] if busy else 0.0
    lines = [
        f"{len(works)} kernels and copies; {sum(totals.values()):.0f} us in all",
        f"busy {busy_us:.0f} us of {span_us:.0f} us",
        "",
        "     us  count  us each  kernel",
    ]
    for name, total in sorted(totals.items(), key=lambda one: -one[1])[:_MOST_KERNELS]:
        lines.append(f"{total:7.1f}  {counts[name]:5d}  {total / counts[name]:7.2f}  {name[:100]}")
    lines += ["", "     us  count  longest  nothing runs between"]
    for (before, after), gaps in sorted(_gaps(works).items(), key=lambda one: -sum(one[1]))[:_MOST_GAPS]:
        names = f"{before[:45]} -> {after[:45]}"
        lines.append(f"{sum(gaps):7.1f}  {len(gaps):5d}  {max(gaps):7.2f}  {names}")
    return lines


def _busy(works: Sequence[Work]) -> list[tuple[float, float]]:
    """Return the stretches in which anything runs."""
    stretches: list[tuple[float, float]] = []
    for work in sorted(works, key=lambda one: one.begin_us):
        if stretches and work.begin_us <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], work.end_us))
        else:
            stretches.append((work.begin_us, work.end_us))
    return stretches


def _gaps(works: Sequence[Work]) -> dict[tuple[str, str], list[float]]:
    """Return the stretches in which nothing runs, by the names before and after."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    last: Work | None = None
    for work in sorted(works, key=lambda one: one.begin_us):
        if last is not None and work.begin_us > last.end_us:
            found[last.name, work.name].append(work.begin_us - last.end_us)
        if last is None or work.end_us > last.end_us:
            last = work
    return found


def _functions(host: cProfile.Profile, num_steps: int) -> list[str]:
    """Return the functions that took the host longest by themselves, the profiler's own cost with them."""
    text = io.StringIO()
    stats = pstats.Stats(host, stream=text).strip_dirs().sort_stats("tottime")
    stats.print_stats(_MOST_FUNCTIONS)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    return [f"host, {num_steps} steps", *lines[1:]]

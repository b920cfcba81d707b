"""Engines of the engine stages, and their steps timed on the wall, on the host and on the device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import Shapes
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams

_PROMPT_IDS = range(5, 350)
"""Tokens that every base of the script has."""


def settings(device: Device) -> dict[str, Any]:
    """Return where and in what an engine computes: on the card in bfloat16, or interpreted in float32."""
    if device.is_rehearsal:
        return {"device": "cpu", "kernels": "triton", "dtype": "float32", "num_threads": 1}
    return {"device": "cuda", "dtype": "bfloat16"}


def pool_bytes(device: Device, shapes: Shapes, rank: int, count: int) -> int:
    """Return the memory for so many adapters of a rank, with some to spare; float32 takes twice as much."""
    return (count + 2) * shapes.adapter_bytes(rank) * (3 if device.is_rehearsal else 1)


@contextmanager
def engine_of(device: Device, model: str, **limits: Any) -> Iterator[LLMEngine]:
    """Serve a folder without weights; afterwards the device's memory is free again."""
    given = {"load_format": "dummy", **settings(device), **limits}
    with LLMEngine(EngineConfig(model=model, **given)) as engine:
        yield engine
    del engine
    gc.collect()
    if not device.is_rehearsal:
        torch.cuda.empty_cache()


def graphs_of(engine: LLMEngine) -> Any:
    """Return the engine's captured steps; None if it launches every kernel by itself."""
    return getattr(engine._parts.executor, "_graphs", None)


class StepTime(NamedTuple):
    """One call of `LLMEngine.step`, in seconds."""

    wall_s: float
    host_s: float  # of it, outside the wait for the device
    forward_s: float  # of the layers on the device, the copy there with them
    sample_s: float  # of head and choice on the device, gaps between their launches with them
    num_waits: int
    is_eager: bool  # launched kernel by kernel


class StepClock:
    """Times the steps of an engine from now on."""

    def __init__(self, engine: LLMEngine, device: Device) -> None:
        self._engine, self._device = engine, device
        executor = engine._parts.executor
        self._forward, self._sample = executor.forward, executor.sample
        executor.forward = self._timed_forward  # type: ignore[method-assign]
        executor.sample = self._timed_sample  # type: ignore[method-assign]
        self._spans: list[dict[str, Any]] = []
        self._waited_s, self._num_waits = 0.0, 0

    def stop(self) -> None:
        """Leave the engine as it was."""
        executor = self._engine._parts.executor
        executor.forward, executor.sample = self._forward, self._sample  # type: ignore[method-assign]

    def step(self) -> list[RequestOutput]:
        """Run a step of the engine."""
        graphs = graphs_of(self._engine)
        num_eager = 0 if graphs is None else graphs.num_eager
        self._waited_s, self._num_waits = 0.0, 0
        self._spans.append({})
        began_s = time.perf_counter()
        outputs = self._engine.step()
        wall_s = time.perf_counter() - began_s
        self._spans[-1] |= {
            "wall_s": wall_s,
            "host_s": wall_s - self._waited_s,
            "num_waits": self._num_waits,
            "is_eager": graphs is None or graphs.num_eager > num_eager,
        }
        return outputs

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return len(self._spans)

    def times(self, first: int = 0, end: int | None = None) -> list[StepTime]:
        """Return the steps from `first` to before `end`; waits for the device."""
        self._device.synchronize()
        return [
            StepTime(
                forward_s=_elapsed_s(span.get("forward")), sample_s=_elapsed_s(span.get("sample")), **own
            )
            for span in self._spans[first:end]
            for own in [{name: span[name] for name in ("wall_s", "host_s", "num_waits", "is_eager")}]
        ]

    def waited(self, seconds: float) -> None:
        """Count a wait for the device."""
        self._waited_s += seconds
        self._num_waits += 1

    def _timed_forward(self, step: Any) -> Any:
        return self._timed("forward", self._forward, step)

    def _timed_sample(self, step: Any, sampling: Any) -> Any:
        return _TimedResults(self._timed("sample", self._sample, step, sampling), self)

    def _timed(self, name: str, call: Any, *arguments: Any) -> Any:
        begin = self._mark()
        result = call(*arguments)
        self._spans[-1][name] = (begin, self._mark())
        return result

    def _mark(self) -> Any:
        if self._device.is_rehearsal:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class _TimedResults:
    """Results of a step whose wait is timed."""

    def __init__(self, results: Any, clock: StepClock) -> None:
        self._results, self._clock = results, clock

    def wait(self) -> Any:
        """Wait for the device."""
        began_s = time.perf_counter()
        output = self._results.wait()
        self._clock.waited(time.perf_counter() - began_s)
        return output


def _elapsed_s(marks: tuple[Any, Any] | None) -> float:
    if marks is None:
        return 0.0
    begin, end = marks
    seconds = end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3
    return float(seconds)


class Batch(NamedTuple):
    """Requests that decode side by side."""

    size: int
    num_prompt_tokens: int
    num_steps: int  # that are measured
    loras: Sequence[LoRARequest | None] = (None,)  # one after the other, and again


def prompt_of(row: int, num_tokens: int) -> list[int]:
    """Return a prompt that begins like no other row's."""
    return [_PROMPT_IDS[(7 * row + at * (row % 5 + 1)) % len(_PROMPT_IDS)] for at in range(num_tokens)]


def decode(engine: LLMEngine, device: Device, batch: Batch) -> list[StepTime]:
    """Serve a batch and return the steps in which all of it decodes and nobody has ended."""
    clock = StepClock(engine, device)
    begin(engine, batch)
    while not any(one.finished for one in clock.step()):
        pass
    end = clock.num_steps - 1  # the last call launched a step, if any, that some are no longer in
    clock.stop()
    stop(engine, batch)
    times = clock.times(end - batch.num_steps, end)
    if len(times) < batch.num_steps:
        raise RuntimeError(f"only {end} steps were run, {batch.num_steps} were to be measured")
    return times


def begin(engine: LLMEngine, batch: Batch, *, num_more_tokens: int = 0) -> None:
    """Queue a batch whose requests all run long enough, however long the prompts of the others take."""
    num_prompt_steps = -(-batch.size * batch.num_prompt_tokens // engine.info.max_num_batched_tokens)
    params = SamplingParams(
        max_tokens=num_prompt_steps * 5 // 4 + batch.num_steps + num_more_tokens + 2,
        temperature=0.0,
        ignore_eos=True,
    )
    for row in range(batch.size):
        lora = batch.loras[row % len(batch.loras)]
        engine.add_request(f"row-{row}", prompt_of(row, batch.num_prompt_tokens), params, lora)


def stop(engine: LLMEngine, batch: Batch) -> None:
    """End what is left of a batch."""
    for row in range(batch.size):
        engine.abort_request(f"row-{row}")
    while engine.has_unfinished_requests():
        engine.step()


def median_ms(times: Sequence[StepTime], field: str) -> float:
    """Return the median of one field, in milliseconds."""
    return 1e3 * float(statistics.median(getattr(one, field) for one in times))

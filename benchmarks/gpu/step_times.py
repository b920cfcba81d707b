"""Stage: what a decode step takes on the wall, on the host and on the card, without and with adapters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu import goals
from benchmarks.gpu.device import Device
from benchmarks.gpu.folders import adapters, model_folder
from benchmarks.gpu.records import Recorder, copy_bytes_per_s
from benchmarks.gpu.serving import Batch, StepTime, decode, engine_of, graphs_of, median_ms, pool_bytes
from benchmarks.gpu.shapes import Shapes, engine_shapes_of
from workers.engine import LLMEngine, LoRARequest

_LIMITS = {"max_model_len": 2048, "max_num_seqs": 64}
_REHEARSED_LIMITS = {"max_model_len": 64, "max_num_seqs": 2, "num_kv_blocks": 16}
_NUM_STEPS, _REHEARSED_STEPS = 44, 1
_TABLE = "steps, ms"


def run(device: Device, recorder: Recorder) -> None:
    """Measure one engine after the other; what breaks costs its own cases."""
    stage = Stage(device, recorder)
    with recorder.alone("base"):
        stage.base()
    small, *large = stage.shapes.ranks
    with recorder.alone(f"adapters of rank {small}"):
        stage.with_adapters(small)
    with recorder.alone("eager"):
        stage.eager()
    for rank in large:
        with recorder.alone(f"adapters of rank {rank}"):
            stage.with_adapters(rank)


class Stage:
    """The cases, and the base's times that ratios are held to."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self._device, self._recorder = device, recorder
        self.shapes: Shapes = engine_shapes_of(device)
        self._bandwidth = copy_bytes_per_s(recorder.folder) or device.copy_bytes_per_s()
        self._base_ms: dict[int, float] = {}

    def base(self) -> None:
        """Measure an engine that serves no adapters."""
        with self._engine("base") as engine:
            for batch in self.shapes.batches:
                times = self._measure(engine, "base", batch)
                self._base_ms[batch] = wall_ms = median_ms(times, "wall_s")
                floor_ms = 1e3 * self.shapes.step_bytes(batch, self.shapes.contexts[0]) / self._bandwidth
                self._recorder.figure(
                    f"step base b{batch}",
                    wall_ms,
                    "ms",
                    floor=floor_ms,
                    goal=goals.of_base(batch) * floor_ms,
                )
                if batch == goals.BATCH_OF_HOST_SHARE:
                    device_ms = median_ms(times, "forward_s") + median_ms(times, "sample_s")
                    share = median_ms(times, "host_s") / device_ms
                    self._recorder.figure(f"host / card b{batch}", share, "x", goal=goals.HOST_SHARE)

    def quantized(self, name: str, quantization: str, bytes_per_weight: float) -> None:
        """Measure a base whose layers stay quantised."""
        with self._engine(name, quantization=quantization) as engine:
            for batch in self.shapes.batches:
                times = self._measure(engine, name, batch)
                num_bytes = self.shapes.step_bytes(batch, self.shapes.contexts[0], bytes_per_weight)
                floor_ms = 1e3 * num_bytes / self._bandwidth
                self._recorder.figure(
                    f"step {name} b{batch}", median_ms(times, "wall_s"), "ms", floor=floor_ms
                )

    def eager(self) -> None:
        """Measure steps that are launched kernel by kernel."""
        batch = self.shapes.batches[-2]
        with self._engine("eager", enforce_eager=True) as engine:
            times = self._measure(engine, "eager", batch)
            self._ratio(f"eager / graphs b{batch}", times, batch)

    def with_adapters(self, rank: int) -> None:
        """Measure no adapter, one, several and many of a rank; all of them are on the card already."""
        counts = self.shapes.adapter_counts
        loras = adapters(self._device, self.shapes, rank, counts[-1])
        limits = {
            "enable_lora": True,
            "max_loras": counts[-1],
            "max_lora_rank": max(rank, 16),
            "lora_pool_bytes": pool_bytes(self._device, self.shapes, max(rank, 16), counts[-1]),
        }
        is_first = rank == self.shapes.ranks[0]
        with self._engine(f"rank {rank}", **limits) as engine:
            batches = self.shapes.batches[1:] if self._device.is_rehearsal else self.shapes.batches
            if is_first:
                for batch in batches:
                    times = self._measure(engine, "LoRA unused", batch)
                    self._ratio(f"step with LoRA unused / base b{batch}", times, batch, goals.UNUSED_LORA)
            num_loaded = 0
            for count in counts if is_first else counts[1:]:
                self._load(engine, loras[num_loaded:count])
                num_loaded = count
                for batch in batches:
                    # Steps of few rows have few adapters; large ranks are measured where their goals are.
                    if batch >= count and (is_first or batch >= self.shapes.batches[-2]):
                        name = f"{count}xr{rank}"
                        times = self._measure(engine, name, batch, loras[:count])
                        self._ratio(
                            f"step with {name} / base b{batch}",
                            times,
                            batch,
                            goals.with_adapters(batch, count, rank),
                            count * self.shapes.adapter_bytes(rank) / self._bandwidth,
                        )

    @contextmanager
    def _engine(self, name: str, **limits: Any) -> Iterator[LLMEngine]:
        limits |= _REHEARSED_LIMITS if self._device.is_rehearsal else _LIMITS
        began_s = time.perf_counter()
        folder = model_folder(self.shapes, quantization=limits.get("quantization"))
        with engine_of(self._device, str(folder), **limits) as engine:
            graphs = graphs_of(engine)
            self._recorder.row(
                "engines",
                engine=name,
                start_s=time.perf_counter() - began_s,
                capture_s=None if graphs is None else graphs.capture_s,
                kv_blocks=float(engine.info.num_kv_blocks),
            )
            yield engine

    def _load(self, engine: LLMEngine, loras: Sequence[LoRARequest]) -> None:
        began_s = time.perf_counter()
        for lora in loras:
            engine.add_lora(lora)
        if loras:
            each_ms = (time.perf_counter() - began_s) / len(loras) * 1e3
            self._recorder.figure(f"add_lora, mean of {len(loras)} {loras[0].lora_name}", each_ms, "ms")

    def _measure(
        self, engine: LLMEngine, name: str, batch: int, loras: Sequence[LoRARequest | None] = (None,)
    ) -> list[StepTime]:
        num_steps = _REHEARSED_STEPS if self._device.is_rehearsal else _NUM_STEPS
        num_prompt_tokens = 4 if self._device.is_rehearsal else self.shapes.contexts[0] - num_steps // 2
        times = decode(engine, self._device, Batch(batch, num_prompt_tokens, num_steps, loras))
        walls = sorted(1e3 * one.wall_s for one in times)
        self._recorder.row(
            _TABLE,
            case=f"{name} b{batch}",
            wall=median_ms(times, "wall_s"),
            least=walls[0],
            longest=walls[-1],
            host=median_ms(times, "host_s"),
            forward=median_ms(times, "forward_s"),
            sample=median_ms(times, "sample_s"),
            eager_steps=float(sum(one.is_eager for one in times)),
        )
        num_waits = max(one.num_waits for one in times)
        self._recorder.check("waits", f"{name} b{batch}", error=num_waits, limit=1, passed=num_waits == 1)
        if graphs_of(engine) is not None:
            num_eager = sum(one.is_eager for one in times)
            self._recorder.check(
                "graphs", f"{name} b{batch}: eager steps", error=num_eager, limit=0, passed=num_eager == 0
            )
        return times

    def _ratio(
        self,
        name: str,
        times: Sequence[StepTime],
        batch: int,
        goal: float | None = None,
        added_s: float | None = None,
    ) -> None:
        base_ms = self._base_ms.get(batch)
        if base_ms is None:
            return
        floor = None if added_s is None else 1 + 1e3 * added_s / base_ms
        self._recorder.figure(name, median_ms(times, "wall_s") / base_ms, "x", floor=floor, goal=goal)

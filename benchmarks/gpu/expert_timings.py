"""What is timed of layers with experts, at the shapes of two models; floors by the experts chosen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, Launch, random
from benchmarks.gpu.expert_case import (
    MIXTRAL_8X7B,
    QWEN3_30B,
    TINY,
    ExpertCase,
    ExpertShapes,
    segments_of,
    weights_of,
)
from benchmarks.gpu.timings import Timing
from kernels.experts.sort_by_expert import tile_rows_for
from kernels.registry import resolve

_BATCHES = (1, 8, 32, 64, 2048)
_NUM_ADAPTERS, _RANK = 8, 16


def expert_timings(device: Device) -> Iterator[Timing]:
    """Yield each product and the layer as a whole, without adapters and where rows decode with."""
    if device.is_rehearsal:
        yield _layer(device, TINY, torch.float32, 2, num_adapters=1)
        return
    for shapes in (QWEN3_30B, MIXTRAL_8X7B):
        for batch in _BATCHES:
            for module in shapes.modules:
                yield _product(device, shapes, torch.bfloat16, module, batch)
            yield _layer(device, shapes, torch.bfloat16, batch, num_adapters=0)
            if 8 <= batch <= 64:
                yield _layer(device, shapes, torch.bfloat16, batch, num_adapters=_NUM_ADAPTERS)


def _product(device: Device, shapes: ExpertShapes, dtype: torch.dtype, module: str, batch: int) -> Timing:
    """Random choices, each turn's its own: the weights of all experts lie there once."""
    width, slices = shapes.modules[module]
    num_sorted, gathers = batch * shapes.num_chosen, module == "gate_up"
    sort, multiply = (
        resolve(name, device.name, dtype, "triton") for name in ("sort_by_expert", "grouped_linear")
    )

    def make(num_copies: int) -> list[Launch]:
        generator = device.generator(1)
        weight = weights_of(device, generator, dtype, shapes.num_experts, sum(slices), width)
        x = random(device, generator, dtype, batch if gathers else num_sorted, width)
        return [
            partial(
                multiply, x, weight, sort(_chosen(device, shapes, batch, turn), shapes.num_experts), gathers
            )
            for turn in range(num_copies)
        ]

    size, num_read = dtype.itemsize, _num_distinct(shapes, batch)
    num_bytes = size * (num_read * width * sum(slices) + num_sorted * (width + sum(slices)))
    name = f"experts of {shapes.name}, {module} b{batch}"
    kind = ("experts", width, tile_rows_for(num_sorted, shapes.num_experts), batch == 1)
    return Timing(name, make, num_bytes, 2 * num_sorted * width * sum(slices), kind)


def _layer(
    device: Device, shapes: ExpertShapes, dtype: torch.dtype, batch: int, *, num_adapters: int
) -> Timing:
    """Router, choice, sorting, products, gate and sum, as the engine launches them."""

    def make(num_copies: int) -> list[Launch]:
        case = ExpertCase(device, shapes, dtype, ranks=[_RANK] * num_adapters)
        generator = device.generator(2)
        segments = None
        if num_adapters:
            slots = sorted(row % num_adapters for row in range(batch))
            segments = segments_of(device, slots, num_tiles=batch // 16 + num_adapters)
        return [
            partial(case.run, random(device, generator, dtype, batch, shapes.hidden_size), segments)
            for _ in range(num_copies)
        ]

    size, num_read = dtype.itemsize, _num_distinct(shapes, batch)
    per_expert = sum(width * sum(slices) for width, slices in shapes.modules.values())
    num_bytes = size * (num_read * per_expert + 2 * batch * shapes.hidden_size)
    num_flops = 2 * batch * shapes.num_chosen * per_expert
    name = f"layer of {shapes.name} b{batch}"
    if num_adapters:
        ranks = sum(len(slices) * width + sum(slices) for width, slices in shapes.modules.values())
        # Every choice may meet another pair of expert and adapter.
        num_pairs = min(batch * shapes.num_chosen, num_read * num_adapters)
        num_bytes += size * num_pairs * _RANK * ranks
        name += f" {num_adapters}xr{_RANK}"
    kind = ("layer", shapes.name, tile_rows_for(batch * shapes.num_chosen, shapes.num_experts), num_adapters)
    return Timing(name, make, num_bytes, num_flops, kind)


def _chosen(device: Device, shapes: ExpertShapes, batch: int, turn: int) -> Tensor:
    generator = device.generator(turn)
    logits = torch.rand(batch, shapes.num_experts, generator=generator, device=device.name)
    return logits.topk(shapes.num_chosen, dim=-1).indices.contiguous()


def _num_distinct(shapes: ExpertShapes, batch: int) -> int:
    """Return how many experts a batch is expected to choose, each row's choices being any."""
    missed = (1 - shapes.num_chosen / shapes.num_experts) ** batch
    return max(1, round(shapes.num_experts * (1 - missed)))

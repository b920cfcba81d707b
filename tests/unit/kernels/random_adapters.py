"""Adapters of given ranks in a table, beside the dense matrices they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.lora.segments import BASE_SLOT, Pass, Segments, SlotScale
from kernels.lora.tables import NUM_DORA_TERMS, RANK_MULTIPLE, LoRAModule, LoRASlice, PackedLoRA, Slice
from tests.unit.kernels.one_module import OneModule


@dataclass(frozen=True)
class Case:
    """A batch, its adapters, and what out must become."""

    x: Tensor
    out: Tensor
    expected: Tensor
    one: OneModule
    segments: Segments
    lora_pass: Pass

    @property
    def module(self) -> LoRAModule:
        return self.one.module


def make_case(
    *,
    ranks: list[list[int]],  # [num_slices][num_slots]; 0 is a sub-module the adapter lacks
    slots: list[int],  # one per row, sorted into runs
    scales: list[float] | None = None,  # one per row
    in_features: int,
    slice_widths: list[int],
    dtype: torch.dtype,
    block_rows: int = 16,
    max_rank: int | None = None,
    garbage: float = float("nan"),
    has_extras: bool = False,
) -> Case:
    """Fill A and B behind each rank with `garbage`: a kernel that reads it is found out."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    factors = torch.tensor(scales or [1.0] * len(slots))
    x, out = random(len(slots), in_features).to(dtype), random(len(slots), sum(slice_widths)).to(dtype)
    expected = out.clone().float()
    adapters: list[PackedLoRA | None] = []
    bounds = list(pairwise(accumulate(slice_widths, initial=0)))
    for slot in range(len(ranks[0])):
        mine = torch.tensor([held == slot for held in slots], dtype=torch.bool)
        stacked, parts, first = [torch.empty(0, in_features, dtype=dtype)], [], 0
        for part, (left, right) in enumerate(bounds):
            rank = ranks[part][slot]
            if rank == 0:
                continue
            padded = -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
            a = torch.full((padded, in_features), garbage).to(dtype)
            b_t = torch.full((padded, right - left), garbage).to(dtype)
            a[:rank], b_t[:rank] = (
                random(rank, in_features) / in_features**0.5,
                random(rank, right - left) / 16,
            )
            bias = random(right - left) if has_extras and part % 2 == 0 else None
            dora = None
            if has_extras and slot % 2 == 0:
                dora = torch.stack([random(right - left) for _ in range(NUM_DORA_TERMS)])
                dora[1:4] = 4.0 + dora[1:4].abs()
            stacked.append(a)
            parts.append(LoRASlice(Slice(left, right), Slice(first, first + padded), b_t, bias, dora, rank))
            first += padded
            shrunk = (x[mine].float() @ a[:rank].float().T * factors[mine, None]).to(dtype).float()
            sums = expected[mine, left:right] + shrunk @ b_t[:rank].float()
            if bias is not None:
                sums += factors[mine, None] * bias
            if dora is not None:
                scale, (magnitude, norm, cross, delta, base_bias) = factors[mine, None], dora
                gain = magnitude / (norm + scale * cross + scale**2 * delta).sqrt()
                sums = gain * (sums - base_bias) + base_bias
            expected[mine, left:right] = sums
        adapters.append(PackedLoRA(torch.cat(stacked), tuple(parts)) if parts else None)
    largest = max(1, *(rank for row in ranks for rank in row))
    one = OneModule(in_features, slice_widths, adapters, dtype, max_rank or -(-largest // 16) * 16)
    rows = zip(slots, factors.tolist(), strict=True)
    runs = [(1, () if slot == BASE_SLOT else (SlotScale(slot, scale),)) for slot, scale in rows]
    num_tiles = len(slots) // block_rows + len(ranks[0])
    segments = Segments.from_runs(runs, block_rows=block_rows, num_tiles=num_tiles)
    idle = Pass.of((), np.ones(len(slots), np.float32), block_rows=block_rows, num_tiles=num_tiles)
    return Case(x, out, expected.to(dtype), one, segments, (*segments.passes, idle)[0])

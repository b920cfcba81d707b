"""Random adapters in a table on the device, rows that use them, and the same in plain torch in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.device import Device, random
from kernels.lora.segments import BASE_SLOT, Pass, Run, Segments
from kernels.lora.tables import (
    NUM_DORA_TERMS,
    RANK_MULTIPLE,
    LoRAModule,
    LoRASlice,
    LoRATable,
    PackedLoRA,
    PackedShape,
    Slice,
    WeightsKey,
)
from kernels.lora.triton_add import lora_add_triton

BLOCK_ROWS = 16


class Rows:
    """Which adapter each row has and how strongly, at addresses that stay when the contents change."""

    def __init__(
        self,
        device: Device,
        slots: Sequence[int],  # one per row, sorted into runs; -1: none
        scales: Sequence[float] | None = None,  # one per row
        *,
        block_rows: int = BLOCK_ROWS,
        num_tiles: int = 0,  # of the grid; as many as there are, without it
    ) -> None:
        self._block_rows, self._num_tiles = block_rows, num_tiles
        self._segments = self._made(slots, scales).to(device.name)

    def update(self, slots: Sequence[int], scales: Sequence[float] | None = None) -> None:
        """Take other adapters for as many rows."""
        (mine,), (given,) = self._segments.passes, self._made(slots, scales).passes
        take(mine, given)

    def add(self, out: Tensor, x: Tensor, module: LoRAModule) -> None:
        """Add the adapters' products to `out`."""
        lora_add_triton(out, x, self._segments, module)

    def add_in_norm(
        self, stream: Tensor, out: Tensor, x: Tensor, module: LoRAModule, weight: Tensor, eps: float
    ) -> Tensor:
        """Add `out` with the adapters' products to the stream, and norm it."""
        halves, rest = lora_add_triton, (self._segments, module)
        shrunk = halves.shrink(x, *rest, is_beside=False)
        return halves.expand_norm(stream, out, shrunk, *rest, weight, eps, is_beside=False)

    def _made(self, slots: Sequence[int], scales: Sequence[float] | None) -> Segments:
        """Build one pass, also where no row has an adapter: a grid that is captured stays."""
        factors = np.array(scales or [1.0] * len(slots), np.float32)
        ends = list(accumulate(len(list(group)) for _, group in groupby(slots)))
        runs = [
            Run(start, end, slots[start]) for start, end in pairwise([0, *ends]) if slots[start] != BASE_SLOT
        ]
        one = Pass.of(runs, factors, block_rows=self._block_rows, num_tiles=self._num_tiles)
        return Segments(len(slots), (one,))


def take(mine: Pass, given: Pass) -> None:
    """Copy another pass of as many rows and tiles to where a captured one lies."""
    assert mine.row_slots is not None
    assert given.row_slots is not None
    mine.table.copy_(given.table)
    mine.scales.copy_(given.scales)
    mine.row_slots.copy_(given.row_slots)


@dataclass(slots=True)
class LoRACase:
    """One packed module, adapters in its slots, and a batch."""

    device: Device
    table: LoRATable
    adapters: list[PackedLoRA]
    slots: list[int]
    scales: list[float]
    x: Tensor
    out: Tensor

    @property
    def module(self) -> LoRAModule:
        """The module, whose name is `module`."""
        return self.table.module("module")

    def run(self, block_rows: int = BLOCK_ROWS) -> Tensor:
        """Return what the kernels make of a copy of `out`."""
        out = self.out.clone()
        Rows(self.device, self.slots, self.scales, block_rows=block_rows).add(out, self.x, self.module)
        return out

    def run_in_norm(self, stream: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return what the kernels make of the stream, `out` and its adapters added, normed."""
        rows = Rows(self.device, self.slots, self.scales)
        return rows.add_in_norm(stream, self.out, self.x, self.module, weight, eps)

    def point(self, order: Sequence[int]) -> None:
        """Give slot s adapter `order[s]`."""
        for slot, adapter in enumerate(order):
            row = self.table.describe({WeightsKey("module"): self.adapters[adapter]})
            self.table.point(slot, row)


def make_lora(
    device: Device,
    *,
    ranks: Sequence[int],  # of each adapter; its first slice has half of it if that is 2 or more
    slots: Sequence[int],  # one per row, sorted into runs
    widths: tuple[int, tuple[int, ...]],  # in, and of each slice out
    dtype: torch.dtype,
    scales: Sequence[float] | None = None,
    has_extras: bool = False,
    max_rank: int | None = None,
    seed: int = 1,
) -> LoRACase:
    """Fill what lies behind each rank with NaN: a kernel that reads it is found out."""
    generator, (in_features, out_slices) = device.generator(seed), widths
    padded = -(-max(ranks) // RANK_MULTIPLE) * RANK_MULTIPLE
    table = LoRATable(
        {"module": PackedShape(in_features, out_slices, dtype)},
        len(ranks),
        max_rank=max_rank or padded,
        device=device.name,
    )
    adapters = [
        _adapter(
            device, generator, rank, in_features, out_slices, dtype, has_extras and index % 3 != 2, index % 2
        )
        for index, rank in enumerate(ranks)
    ]
    case = LoRACase(
        device,
        table,
        adapters,
        list(slots),
        list(scales or [1.0] * len(slots)),
        random(device, generator, dtype, len(slots), in_features),
        random(device, generator, dtype, len(slots), sum(out_slices)),
    )
    case.point(range(len(ranks)))
    return case


def _adapter(
    device: Device,
    generator: torch.Generator,
    rank: int,
    in_features: int,
    out_slices: tuple[int, ...],
    dtype: torch.dtype,
    has_extras: bool,
    has_dora: int,
) -> PackedLoRA:
    stacked, parts, first = [], [], 0
    for index, (left, right) in enumerate(pairwise(accumulate(out_slices, initial=0))):
        own = max(1, rank // 2) if index == 0 and len(out_slices) > 1 else rank
        padded = -(-own // RANK_MULTIPLE) * RANK_MULTIPLE
        a, b_t = (
            torch.full((padded, width), float("nan"), dtype=dtype, device=device.name)
            for width in (in_features, right - left)
        )
        a[:own] = random(device, generator, torch.float32, own, in_features) / in_features**0.5
        b_t[:own] = random(device, generator, torch.float32, own, right - left) / own**0.5
        bias = dora = None
        if has_extras:
            bias = random(device, generator, torch.float32, right - left)
            if has_dora:
                dora = random(device, generator, torch.float32, NUM_DORA_TERMS, right - left)
                dora[1:4] = 4.0 + dora[1:4].abs()
        stacked.append(a)
        ranks = Slice(first, first + padded)
        parts.append(LoRASlice(Slice(left, right), ranks, b_t, bias, dora, own))
        first += padded
    return PackedLoRA(torch.cat(stacked), tuple(parts))


def add_plainly(case: LoRACase, dtype: torch.dtype, order: Sequence[int] | None = None) -> Tensor:
    """Compute what the kernels must, in float64, or in the case's dtype and rounded where torch rounds."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    out = case.out.to(dtype)
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(case.slots):
        if slot != BASE_SLOT:
            rows_of.setdefault(slot, []).append(row)
    for slot, rows in rows_of.items():
        adapter = case.adapters[slot if order is None else order[slot]]
        x = case.x[rows].to(dtype)
        scales = torch.tensor([case.scales[row] for row in rows], device=x.device, dtype=wide)[:, None]
        for part in adapter.slices:
            a = adapter.a[part.rank.start : part.rank.start + part.num_ranks].to(dtype)
            delta = ((x @ a.T).to(wide) * scales).to(dtype) @ part.b_t[: part.num_ranks].to(dtype)
            sums = out[rows, part.out.start : part.out.end].to(wide) + delta.to(wide)
            if part.bias is not None:
                sums = sums + scales * part.bias.to(wide)
            if part.dora is not None:
                magnitude, base, cross, square, base_bias = part.dora.to(wide).unbind()
                gain = magnitude / (base + scales * (cross + scales * square)).sqrt()
                sums = gain * (sums - base_bias) + base_bias
            out[rows, part.out.start : part.out.end] = sums.to(dtype)
    return out

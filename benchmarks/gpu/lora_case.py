"""Random adapters in a table on the device, rows that use them, and the same in plain torch in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.device import Device, random
from kernels.lora.expand import lora_expand
from kernels.lora.segments import BASE_SLOT, Pass, Segments, SlotScale
from kernels.lora.shrink import lora_shrink
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

BLOCK_ROWS = 16


class Rows:
    """Which adapter each row has and how strongly, at addresses that stay when the contents change."""

    def __init__(
        self,
        device: Device,
        slots: Sequence[int],  # one per row, sorted into runs; -1: none
        scales: Sequence[float] | None = None,  # one per row
        *,
        num_tiles: int = 0,  # of the grid; as many as there are, without it
        has_extras: bool = True,
    ) -> None:
        self._has_extras = has_extras
        self._num_tiles = num_tiles
        on_host = _pass_of(slots, scales, num_tiles)
        self._pass = Segments(len(slots), (on_host,)).to(device.name).passes[0]

    def update(self, slots: Sequence[int], scales: Sequence[float] | None = None) -> None:
        """Take other adapters for as many rows."""
        on_host = _pass_of(slots, scales, self._num_tiles)
        self._pass.table.copy_(on_host.table)
        self._pass.scales.copy_(on_host.scales)

    def add(self, out: Tensor, x: Tensor, module: LoRAModule) -> None:
        """Add the adapters' products to `out`."""
        shrunk = lora_shrink(x, module, self._pass)
        lora_expand(out, shrunk, module, self._pass, has_extras=self._has_extras)


def _pass_of(slots: Sequence[int], scales: Sequence[float] | None, num_tiles: int) -> Pass:
    rows = zip(slots, scales or [1.0] * len(slots), strict=True)
    runs = [(1, () if slot == BASE_SLOT else (SlotScale(slot, scale),)) for slot, scale in rows]
    passes = Segments.from_runs(runs, block_rows=BLOCK_ROWS, num_tiles=num_tiles).passes
    if passes:
        return passes[0]
    return Pass.of((), np.ones(len(slots), np.float32), block_rows=BLOCK_ROWS, num_tiles=num_tiles)


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

    def run(self, rows: Rows | None = None) -> Tensor:
        """Return what the kernels make of a copy of `out`."""
        out = self.out.clone()
        (rows or Rows(self.device, self.slots, self.scales)).add(out, self.x, self.module)
        return out

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

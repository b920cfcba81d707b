"""Adapters of given ranks scattered over page pools, beside the dense matrices they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.pages import PAGE_RANKS, DeviceTiles, LoRAPages
from kernels.lora.segments import BASE_SLOT, Pass, Segments, SlotScale


@dataclass(frozen=True)
class Case:
    """A batch, its pages, and what out must become."""

    x: Tensor
    out: Tensor
    expected: Tensor
    pages: LoRAPages
    tiles: DeviceTiles


def make_case(
    *,
    ranks: list[list[int]],  # [num_slices][num_slots]
    slots: list[int],  # one per row, sorted into runs
    scales: list[float] | None = None,  # one per slot
    in_features: int,
    slice_widths: list[int],
    dtype: torch.dtype,
    block_rows: int = 16,
    garbage: float = float("nan"),
) -> Case:
    """Fill every pool element that belongs to nobody with `garbage`: a kernel that reads it is found out."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    num_slots = len(ranks[0])
    factors = scales or [1.0] * num_slots
    max_pages = max(1, *(-(-rank // PAGE_RANKS) for row in ranks for rank in row))
    places = [
        (part, slot, page)
        for part in range(len(ranks))
        for slot in range(num_slots)
        for page in range(max_pages)
    ]
    shuffled = torch.randperm(len(places), generator=generator).tolist()
    widest = PAGE_RANKS * max(slice_widths)
    a_pool = torch.full((len(places), PAGE_RANKS, in_features), garbage).to(dtype)
    b_pool = torch.full((len(places) * widest,), garbage).to(dtype)
    a_pages = torch.zeros(len(ranks), num_slots, max_pages, dtype=torch.int32)
    b_offsets = torch.zeros(len(ranks), num_slots, max_pages, dtype=torch.int64)
    x, out = random(len(slots), in_features), random(len(slots), sum(slice_widths))
    expected = out.clone().float()
    for (part, slot, page), number in zip(places, shuffled, strict=True):
        a_pages[part, slot, page], b_offsets[part, slot, page] = number, number * widest
        width, rows = slice_widths[part], min(PAGE_RANKS, ranks[part][slot] - page * PAGE_RANKS)
        if rows <= 0:
            continue
        a, b = random(rows, in_features) / in_features**0.5, random(rows, width) / PAGE_RANKS
        a_pool[number, :rows] = a
        b_pool[number * widest : number * widest + rows * width] = b.flatten()
        mine = torch.tensor([held == slot for held in slots], dtype=torch.bool)
        start = sum(slice_widths[:part])
        shrunk = (x.float() @ a.float().T).to(dtype).float()
        expected[:, start : start + width] += mine[:, None] * (shrunk @ b.float()) * factors[slot]
    pages = LoRAPages(
        a_pool=a_pool,
        b_pool=b_pool,
        a_pages=a_pages,
        b_offsets=b_offsets,
        ranks=torch.tensor(ranks, dtype=torch.int32),
        slice_starts=torch.tensor([0, *torch.tensor(slice_widths).cumsum(0)], dtype=torch.int32),
        max_slice_features=max(slice_widths),
    )
    runs = [(1, () if slot == BASE_SLOT else (SlotScale(slot, factors[slot]),)) for slot in slots]
    lora_pass = (*Segments.from_runs(runs).passes, Pass.of(()))[0]
    host_tiles = lora_pass.tiles(block_rows, pad_to=len(slots) // block_rows + num_slots)
    tiles = DeviceTiles.from_host(host_tiles, block_rows=block_rows, device="cpu")
    return Case(x, out, expected.to(dtype), pages, tiles)

"""Adapters on a GPU: pools of 16-rank pages, and the tables that say which pages a slot has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.segments import Tiles

PAGE_RANKS = 16
# tl.dot takes 16 rows at least; with 64, expand spills on sm_80 and sm_90 (triton 3.7.1, 2026-11).
BLOCK_ROWS = (16, 32)


@dataclass(frozen=True, slots=True)
class LoRAPages:
    """One packed module's adapters; contents change under fixed addresses, so captured graphs can replay."""

    a_pool: Tensor  # [num_a_pages, 16, in_features]
    b_pool: Tensor  # [num_elements], pages of [16, out_slice] one after another
    a_pages: Tensor  # [num_slices, num_slots, max_pages] int32, page numbers in a_pool
    b_offsets: Tensor  # [num_slices, num_slots, max_pages] int64, elements from the start of b_pool
    ranks: Tensor  # [num_slices, num_slots] int32, 0 where the slot's adapter lacks the sub-module
    slice_starts: Tensor  # [num_slices + 1] int32, columns of the packed output
    max_slice_features: int

    @property
    def num_slices(self) -> int:
        return self.a_pages.shape[0]

    @property
    def num_slots(self) -> int:
        return self.a_pages.shape[1]

    @property
    def max_pages(self) -> int:
        return self.a_pages.shape[2]

    @property
    def in_features(self) -> int:
        return self.a_pool.shape[2]

    def check(self) -> None:
        """Raise ValueError, with the values, unless shapes, dtypes and layouts fit together."""
        table_shape = (self.num_slices, self.num_slots, self.max_pages)
        for name, tensor, shape, dtype in (
            ("a_pages", self.a_pages, table_shape, torch.int32),
            ("b_offsets", self.b_offsets, table_shape, torch.int64),
            ("ranks", self.ranks, table_shape[:2], torch.int32),
            ("slice_starts", self.slice_starts, (self.num_slices + 1,), torch.int32),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} {dtype}"
                )
        if self.a_pool.dim() != 3 or self.a_pool.shape[1] != PAGE_RANKS:
            raise ValueError(
                f"a_pool is {tuple(self.a_pool.shape)}; it must be [pages, {PAGE_RANKS}, in_features]"
            )
        if self.b_pool.dim() != 1 or self.b_pool.dtype is not self.a_pool.dtype:
            raise ValueError(
                f"b_pool is {tuple(self.b_pool.shape)} {self.b_pool.dtype}; flatten it, in A's dtype"
            )
        for tensor in (self.a_pool, self.b_pool, self.a_pages, self.b_offsets, self.ranks, self.slice_starts):
            if not tensor.is_contiguous() or tensor.device != self.a_pool.device:
                raise ValueError(
                    f"a table is strided or on {tensor.device}; all must be contiguous on one device"
                )


@dataclass(frozen=True, slots=True)
class DeviceTiles:
    """Where each program's rows start and end, whose they are and how much; slot -1: the program leaves."""

    starts: Tensor  # [num_tiles] int32
    ends: Tensor  # [num_tiles] int32
    slots: Tensor  # [num_tiles] int32
    scales: Tensor  # [num_tiles] float32
    block_rows: int

    @classmethod
    def from_host(cls, tiles: Tiles, *, block_rows: int, device: torch.device | str) -> DeviceTiles:
        """Copy tiles that `Pass.tiles(block_rows)` cut to the device."""
        starts, ends, slots = (torch.tensor(column, dtype=torch.int32, device=device) for column in tiles[:3])
        scales = torch.tensor(tiles.scales, dtype=torch.float32, device=device)
        return cls(starts, ends, slots, scales, block_rows)

    def update(self, tiles: Tiles) -> None:
        """Take another step's tiles at the same addresses; ValueError unless they are as many: pad them."""
        if len(tiles.starts) != self.num_tiles:
            raise ValueError(
                f"{len(tiles.starts)} tiles for a grid of {self.num_tiles}; "
                f"cut them with pad_to={self.num_tiles}"
            )
        columns = self.starts, self.ends, self.slots, self.scales
        for column, values in zip(columns, tiles, strict=True):
            column.copy_(torch.tensor(values, dtype=column.dtype))

    @property
    def num_tiles(self) -> int:
        return self.starts.shape[0]

    def check(self) -> None:
        """Raise ValueError, with the values, unless the kernels can read the tiles."""
        if self.block_rows not in BLOCK_ROWS:
            raise ValueError(f"block_rows is {self.block_rows}; give one of {BLOCK_ROWS}")
        for name, column, dtype in (
            ("starts", self.starts, torch.int32),
            ("ends", self.ends, torch.int32),
            ("slots", self.slots, torch.int32),
            ("scales", self.scales, torch.float32),
        ):
            if column.dtype is not dtype or column.shape != self.starts.shape or column.dim() != 1:
                raise ValueError(
                    f"{name} is {tuple(column.shape)} {column.dtype}; it must be [num_tiles] {dtype}"
                )

"""A pass as GPU kernels read it: one tile of rows per program, and every row's scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.segments import Pass

BLOCK_ROWS = (16, 32)
"""tl.dot takes 16 rows at least."""


@dataclass(frozen=True, slots=True)
class DeviceTiles:
    """Where each program's rows start and end, and whose they are; slot -1: the program leaves."""

    tiles: Tensor  # [num_tiles, 4] int32: start, end, slot, expert
    scales: Tensor  # [num_rows] float32
    block_rows: int

    @classmethod
    def of(
        cls, lora_pass: Pass, *, block_rows: int, device: torch.device | str, pad_to: int = 0
    ) -> DeviceTiles:
        """Cut a pass and copy it to the device; `pad_to` fills up the tiles so that a grid keeps its size."""
        return cls(
            _tiles(lora_pass, block_rows, pad_to).to(device),
            lora_pass.scales.to(device, copy=True),
            block_rows,
        )

    def update(self, lora_pass: Pass) -> None:
        """Take another step's pass at the same addresses; ValueError for one that has more tiles or rows."""
        tiles = _tiles(lora_pass, self.block_rows, self.num_tiles)
        if len(tiles) != self.num_tiles or lora_pass.scales.shape != self.scales.shape:
            raise ValueError(
                f"{len(tiles)} tiles of {lora_pass.scales.numel()} rows for a grid of {self.num_tiles} tiles "
                f"and {self.scales.numel()} rows; pad the batch and make the grid as large as it can get"
            )
        self.tiles.copy_(tiles)
        self.scales.copy_(lora_pass.scales)

    @property
    def num_tiles(self) -> int:
        """Count the tiles, unused ones at the end included."""
        return self.tiles.shape[0]

    def check(self, num_rows: int) -> None:
        """Raise ValueError, with the values, unless the kernels can read the tiles for so many rows."""
        if self.block_rows not in BLOCK_ROWS:
            raise ValueError(f"block_rows is {self.block_rows}; give one of {BLOCK_ROWS}")
        for name, tensor, shape, dtype in (
            ("tiles", self.tiles, (self.num_tiles, 4), torch.int32),
            ("scales", self.scales, (num_rows,), torch.float32),
        ):
            if tensor.dtype is not dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be contiguous {shape} {dtype}"
                )


def _tiles(lora_pass: Pass, block_rows: int, pad_to: int) -> Tensor:
    columns = lora_pass.tiles(block_rows, pad_to=pad_to)
    return torch.tensor(columns, dtype=torch.int32).view(4, -1).T.contiguous()

"""A batch sorted by the experts that its rows chose, on the device: the host knows shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ROWS = (16, 32, 64, 128)
"""Rows of a grouped product's tiles."""
_LEAST_MEAN = {128: 96, 64: 32, 32: 12}
"""Rows of an expert, on average, from which tiles have so many. As vLLM's tuned tables for an H100 have it (8
experts of 7168, 128 of 768; 2025); not yet measured here."""


@dataclass(frozen=True, slots=True)
class SortedRows:
    """Rows sorted by expert, and within one expert as they were in the batch, so by adapter."""

    sources: Tensor  # [num_rows * num_chosen] int64, the row of the batch behind each sorted row
    places: Tensor  # [num_rows * num_chosen] int64, the sorted row of each row's first, second, .. choice


@dataclass(frozen=True, slots=True)
class DeviceRows(SortedRows):
    """Rows sorted on the device, with the tiles of a grouped product.

    Rows of no sequence come last in a batch. They have no expert: behind the others they stay where they are.
    """

    starts: Tensor  # [num_experts + 1] int64, the first sorted row of each expert, then the end of the last
    tiles: Tensor  # [num_tiles, 3] int64: start, end, expert; then idle (0, 0, 0)
    tile_rows: int  # of the largest tile there may be

    @property
    def num_rows(self) -> int:
        """How many sorted rows there are."""
        return self.sources.shape[0]

    @property
    def num_experts(self) -> int:
        """How many experts there are to choose from."""
        return self.starts.shape[0] - 1


SortByExpert = Callable[[Tensor, int, Tensor | None], SortedRows]
"""Called as `sort_by_expert_reference`."""


def tile_rows_for(num_sorted: int, num_experts: int) -> int:
    """Return the rows of a tile: all are multiplied, and an expert's weights are read once for each tile."""
    mean = num_sorted / num_experts
    return next((rows for rows, least in _LEAST_MEAN.items() if mean >= least), TILE_ROWS[0])


def num_tiles_for(num_sorted: int, num_experts: int, tile_rows: int) -> int:
    """Return the most tiles that any choice can make: no expert has more than one that is not full."""
    num_chosen = min(num_sorted, num_experts)
    return (num_sorted + num_chosen * (tile_rows - 1)) // tile_rows


def empty_rows(chosen: Tensor, num_experts: int) -> DeviceRows:
    """Return what is to be filled for a router's choice, after a check; ValueError has the values."""
    if chosen.dim() != 2 or chosen.dtype is not torch.int64 or not chosen.is_contiguous():
        raise ValueError(
            f"chosen is {tuple(chosen.shape)} {chosen.dtype} with strides {chosen.stride()}; "
            "give a contiguous matrix of int64"
        )
    num_sorted = chosen.numel()
    tile_rows = tile_rows_for(num_sorted, num_experts)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=chosen.device)

    num_tiles = num_tiles_for(num_sorted, num_experts, tile_rows)
    return DeviceRows(
        empty(num_sorted), empty(num_sorted), empty(num_experts + 1), empty(num_tiles, 3), tile_rows
    )


def sort_by_expert_meta(chosen: Tensor, num_experts: int, sequence_rows: Tensor | None = None) -> DeviceRows:
    """Return tensors without contents."""
    del sequence_rows
    return empty_rows(chosen, num_experts)


def sort_by_expert_reference(
    chosen: Tensor,  # [num_rows, num_chosen] int64
    num_experts: int,
    sequence_rows: Tensor
    | None = None,  # [num_seqs, 3] int32: first row, number of rows; None: all are some's
) -> DeviceRows:
    """Sort a router's choices in plain torch."""
    rows = empty_rows(chosen, num_experts)
    num_rows = chosen.shape[0] if sequence_rows is None else int(sequence_rows[:, 1].sum())
    experts = torch.full_like(chosen, num_experts)  # nobody's: behind all others
    experts[:num_rows] = chosen[:num_rows]
    experts, order = experts.flatten().sort(stable=True)
    rows.sources.copy_(order.div(chosen.shape[1], rounding_mode="floor"))
    rows.places[order] = torch.arange(order.numel(), device=order.device)
    rows.starts.copy_(torch.searchsorted(experts, torch.arange(num_experts + 1, device=order.device)))
    bounds = rows.starts.tolist()
    tiles = [
        (start, min(start + rows.tile_rows, bounds[expert + 1]), expert)
        for expert in range(num_experts)
        for start in range(bounds[expert], bounds[expert + 1], rows.tile_rows)
    ]
    rows.tiles.zero_()
    rows.tiles[: len(tiles)] = torch.tensor(tiles, dtype=torch.int64).view(-1, 3)
    return rows

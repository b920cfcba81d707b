"""Sorting by expert on a GPU: each expert's program counts all choices, and places its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.experts.sort_by_expert import DeviceRows, empty_rows

FEW_CHOICES, MANY_CHOICES = 1024, 4096
"""That a program reads at once; more of them only where there are more than a few blocks of the others."""
NUM_WARPS = {FEW_CHOICES: 4, MANY_CHOICES: 8}
LEAST_BINS = 32
BLOCK_TILES, LEAST_SEQUENCES = 32, 128


@triton.jit(do_not_specialize=["num_choices", "num_sequences", "num_tiles"])  # type: ignore[untyped-decorator]
def sort_by_expert_kernel(  # type: ignore[no-untyped-def]
    chosen_ptr,  # [num_choices] int64
    sequence_rows_ptr,  # [num_sequences, 3] int32: first row, number of rows; not read unless FILLED
    sources_ptr,  # [num_choices] int64
    places_ptr,  # [num_choices] int64
    starts_ptr,  # [num_experts + 1] int64
    tiles_ptr,  # [num_tiles, 3] int64
    num_choices,
    num_sequences,
    num_tiles,
    num_experts,
    NUM_CHOSEN: tl.constexpr,
    FILLED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_SEQUENCES: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Place an expert's choices behind those of all before it, and cut them into tiles; program (expert).

    FILLED: rows behind those of all sequences choose nothing. The last expert's program leaves them where
    they are, and writes the idle tiles.
    """
    expert = tl.program_id(0)
    num_busy = num_choices
    if FILLED:
        sequences = tl.arange(0, BLOCK_SEQUENCES)
        rows = tl.load(sequence_rows_ptr + sequences * 3 + 1, mask=sequences < num_sequences, other=0)
        num_busy = tl.sum(rows, axis=0) * NUM_CHOSEN
    wait_for_inputs(PDL)
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(0, num_busy, BLOCK):
        choices = first + tl.arange(0, BLOCK)
        exists = choices < num_busy
        chosen = tl.load(chosen_ptr + choices, mask=exists, other=0).to(tl.int32)
        counts += tl.histogram(chosen, BINS, mask=exists)
    experts = tl.arange(0, BINS)
    is_before = experts < expert
    start = tl.sum(tl.where(is_before, counts, 0), axis=0)
    num_mine = tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    tiles_of = (counts + (TILE_ROWS - 1)) // TILE_ROWS
    first_tile = tl.sum(tl.where(is_before, tiles_of, 0), axis=0)
    end, end_tile = start + num_mine, first_tile + (num_mine + (TILE_ROWS - 1)) // TILE_ROWS
    tl.store(starts_ptr + expert, start)
    last_tile = end_tile
    if expert == num_experts - 1:
        tl.store(starts_ptr + num_experts, end)
        last_tile = num_tiles
    for begin in range(first_tile, last_tile, BLOCK_TILES):
        tiles = begin + tl.arange(0, BLOCK_TILES)
        is_mine, is_busy = tiles < last_tile, tiles < end_tile
        first_rows = start + (tiles - first_tile) * TILE_ROWS
        end_rows = tl.minimum(first_rows + TILE_ROWS, end)
        tl.store(tiles_ptr + tiles * 3, tl.where(is_busy, first_rows, 0), mask=is_mine)
        tl.store(tiles_ptr + tiles * 3 + 1, tl.where(is_busy, end_rows, 0), mask=is_mine)
        tl.store(tiles_ptr + tiles * 3 + 2, tl.where(is_busy, expert, 0), mask=is_mine)
    place = start
    for first in range(0, num_busy, BLOCK):
        choices = first + tl.arange(0, BLOCK)
        exists = choices < num_busy
        chosen = tl.load(chosen_ptr + choices, mask=exists, other=-1).to(tl.int32)
        is_mine = (chosen == expert).to(tl.int32)
        places = place + tl.cumsum(is_mine, axis=0) - 1
        tl.store(places_ptr + choices, places, mask=is_mine != 0)
        tl.store(sources_ptr + places, choices // NUM_CHOSEN, mask=is_mine != 0)
        place += tl.sum(is_mine, axis=0)
    if FILLED & (expert == num_experts - 1):
        for first in range(num_busy, num_choices, BLOCK):
            choices = first + tl.arange(0, BLOCK)
            tl.store(places_ptr + choices, choices, mask=choices < num_choices)
            tl.store(sources_ptr + choices, choices // NUM_CHOSEN, mask=choices < num_choices)


def sort_by_expert_triton(
    chosen: Tensor,  # [num_rows, num_chosen] int64
    num_experts: int,
    sequence_rows: Tensor | None = None,  # [num_seqs, 3] int32
) -> DeviceRows:
    """Compute `sort_by_expert_reference`."""
    rows = empty_rows(chosen, num_experts)
    if sequence_rows is not None and (
        sequence_rows.shape[1:] != (3,)
        or sequence_rows.dtype is not torch.int32
        or not sequence_rows.is_contiguous()
    ):
        raise ValueError(
            f"sequence_rows is {tuple(sequence_rows.shape)} {sequence_rows.dtype} with strides "
            f"{sequence_rows.stride()}; give contiguous int32 of three columns"
        )
    num_sequences = 0 if sequence_rows is None else sequence_rows.shape[0]
    block = FEW_CHOICES if rows.num_rows <= 4 * FEW_CHOICES else MANY_CHOICES
    sort_by_expert_kernel[(num_experts,)](
        chosen,
        chosen if sequence_rows is None else sequence_rows,
        rows.sources,
        rows.places,
        rows.starts,
        rows.tiles,
        rows.num_rows,
        num_sequences,
        rows.tiles.shape[0],
        num_experts,
        NUM_CHOSEN=chosen.shape[1],
        FILLED=sequence_rows is not None,
        TILE_ROWS=rows.tile_rows,
        BLOCK=block,
        BLOCK_TILES=BLOCK_TILES,
        BLOCK_SEQUENCES=max(LEAST_SEQUENCES, triton.next_power_of_2(num_sequences)),
        BINS=max(LEAST_BINS, triton.next_power_of_2(num_experts)),
        num_warps=NUM_WARPS[block],
        **dependent_launch(chosen.device),
    )
    return rows

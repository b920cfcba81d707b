"""Cutting sorted rows into tiles of adapters on a GPU: each expert's program cuts its own rows."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.experts.expert_segments import empty_segments, most_runs
from kernels.experts.sort_by_expert import DeviceRows, SortedRows
from kernels.lora.segments import Segments

BLOCK_ROWS = 64
LEAST_BINS = 32
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_runs", "num_tiles"])  # type: ignore[untyped-decorator]
def expert_segments_kernel(  # type: ignore[no-untyped-def]
    sources_ptr,  # [num_sorted] int64
    starts_ptr,  # [num_experts + 1] int64
    row_slots_ptr,  # [num_rows] int64, -1: no adapter
    batch_scales_ptr,  # [num_rows] float32
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_sorted] float32
    num_runs,  # that the batch has at the most
    num_tiles,
    num_experts,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Cut one expert's rows where the slot changes, and every TILE_ROWS of them; program (expert).

    Each expert has room for as many tiles as its rows may need, behind that of all before it; what it does
    not need is idle. The last expert's program also writes what is behind it.
    """
    expert = tl.program_id(0)
    wait_for_inputs(PDL)
    experts = tl.arange(0, BINS)
    exists = experts < num_experts
    firsts = tl.load(starts_ptr + experts, mask=exists, other=0).to(tl.int32)
    counts = tl.load(starts_ptr + 1 + experts, mask=exists, other=0).to(tl.int32) - firsts
    room = tl.minimum(counts, tl.minimum(counts, num_runs) + counts // TILE_ROWS)
    tile = tl.sum(tl.where(experts < expert, room, 0), axis=0)
    end_tile = tile + tl.sum(tl.where(experts == expert, room, 0), axis=0)
    start = tl.load(starts_ptr + expert).to(tl.int32)
    end = tl.load(starts_ptr + expert + 1).to(tl.int32)
    if expert == num_experts - 1:
        end_tile = num_tiles
    # One more than there are: what follows the last row ends its tile.
    for first in range(start, end + 1, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        is_mine, has_previous = rows < end, (rows > start) & (rows <= end)
        here = tl.load(sources_ptr + rows, mask=is_mine, other=-1).to(tl.int32)
        before = tl.load(sources_ptr + rows - 1, mask=has_previous, other=-1).to(tl.int32)
        slots = tl.load(row_slots_ptr + here, mask=is_mine, other=-1).to(tl.int32)
        previous = tl.load(row_slots_ptr + before, mask=has_previous, other=-1).to(tl.int32)
        is_cut = (slots != previous) | ((rows - start) % TILE_ROWS == 0) | (rows == end)
        begins = (is_mine & is_cut & (slots >= 0)).to(tl.int32)
        numbers = tile + tl.cumsum(begins, axis=0)
        begin_ptrs = tiles_ptr + (numbers - 1) * 4
        tl.store(begin_ptrs, rows, mask=begins != 0)
        tl.store(begin_ptrs + 2, slots, mask=begins != 0)
        tl.store(begin_ptrs + 3, expert, mask=begins != 0)
        ends = has_previous & is_cut & (previous >= 0)
        tl.store(tiles_ptr + (numbers - begins - 1) * 4 + 1, rows, mask=ends)
        scales = tl.load(batch_scales_ptr + here, mask=is_mine, other=1.0)
        tl.store(scales_ptr + rows, scales, mask=is_mine)
        tile += tl.sum(begins, axis=0)
    for first in range(tile, end_tile, BLOCK):
        tiles = first + tl.arange(0, BLOCK)
        is_idle = tiles < end_tile
        tl.store(tiles_ptr + tiles * 4, 0, mask=is_idle)
        tl.store(tiles_ptr + tiles * 4 + 1, 0, mask=is_idle)
        tl.store(tiles_ptr + tiles * 4 + 2, -1, mask=is_idle)
        tl.store(tiles_ptr + tiles * 4 + 3, 0, mask=is_idle)


def expert_segments_triton(rows: SortedRows, segments: Segments) -> Segments:
    """Compute `expert_segments_reference`."""
    made = empty_segments(rows, segments)
    assert isinstance(rows, DeviceRows)
    for given, one in zip(segments.passes, made.passes, strict=True):
        expert_segments_kernel[(rows.num_experts,)](
            rows.sources,
            rows.starts,
            given.row_slots,
            given.scales,
            one.table,
            one.scales,
            most_runs(given),
            one.table.shape[0],
            rows.num_experts,
            TILE_ROWS=one.block_rows,
            BLOCK=BLOCK_ROWS,
            BINS=max(LEAST_BINS, triton.next_power_of_2(rows.num_experts)),
            num_warps=NUM_WARPS,
            **dependent_launch(one.table.device),
        )
    return made

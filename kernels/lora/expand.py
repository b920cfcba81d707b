"""LoRA expand: add every row's low-rank product to the packed output, in place, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.lora.add import check_tiles
from kernels.lora.reference import apply_dora
from kernels.lora.segments import BLOCK_ROWS, Pass
from kernels.lora.shrink import BLOCK_RANK, planes_shape
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule

# Not yet tuned on a device; what they compile to is bounded by test_expand.py.
ROW_BYTES_OF_BLOCK = 256
WIDE_SLICE, ROW_BYTES_OF_WIDE_BLOCK = 8192, 512
"""Low ranks have programs enough in so wide a slice for each to read more of B per read of its planes."""
COLUMN_BYTES_OF_BLOCK = {16: 128, 32: 64, 64: 64}
NUM_WARPS = {16: 4, 32: 8, 64: 8}
NUM_STAGES = 1
"""Most adapters are one block of ranks: there is no next one to read ahead."""
PLANES_IN_REGISTERS = 16
"""Numbers that a thread reads of the planes before it adds them up, so that all are on their way at once."""


@triton.jit
def apply_dora_terms(total, scales, address, width, columns, column_exists):  # type: ignore[no-untyped-def]
    """Return m / |W + scale BA| (total - bias) + bias; terms are rows of `width` float32 at `address`."""
    term_ptrs = address.to(tl.pointer_type(tl.float32)) + columns
    magnitude = tl.load(term_ptrs, mask=column_exists, other=0.0)[None, :]
    norm = tl.load(term_ptrs + width, mask=column_exists, other=1.0)[None, :]
    cross = tl.load(term_ptrs + 2 * width, mask=column_exists, other=0.0)[None, :]
    delta = tl.load(term_ptrs + 3 * width, mask=column_exists, other=0.0)[None, :]
    base_bias = tl.load(term_ptrs + 4 * width, mask=column_exists, other=0.0)[None, :]
    gain = magnitude / tl.sqrt(norm + scales * (cross + scales * delta))
    return gain * (total - base_bias) + base_bias


@triton.jit
def load_ranks(b_ptr, ranks, rank, width, columns, column_exists):  # type: ignore[no-untyped-def]
    """Return [BLOCK_R, BLOCK_N] of B, 0 behind its rank."""
    return tl.load(
        b_ptr + ranks[:, None] * width + columns[None, :],
        mask=(ranks < rank)[:, None] & column_exists[None, :],
        other=0.0,
    )


@triton.jit
def apply_extras(  # type: ignore[no-untyped-def]
    total,  # [.., BLOCK_N] float32
    scales,
    bias_address,
    dora_address,
    width,
    columns,
    column_exists,
):
    """Return the sum with the adapter's bias, and at the adapter's magnitudes, if it has them."""
    if bias_address != 0:
        bias_ptr = bias_address.to(tl.pointer_type(tl.float32))
        total += scales * tl.load(bias_ptr + columns, mask=column_exists, other=0.0)[None, :]
    if dora_address != 0:
        total = apply_dora_terms(total, scales, dora_address, width, columns, column_exists)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def find_slice(columns_ptr, block, NUM_SLICES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the slice with the block-th block of columns, the block's number in it, its start and width."""
    part, start, end = block * 0, tl.load(columns_ptr), tl.load(columns_ptr + 1)
    for index in tl.static_range(1, NUM_SLICES):
        num_blocks = ((end - start + BLOCK_N - 1) // BLOCK_N).to(tl.int32)
        is_behind = (part == index - 1) & (block >= num_blocks)
        block = tl.where(is_behind, block - num_blocks, block)
        part = tl.where(is_behind, index, part)
        start = tl.where(is_behind, end, start)
        end = tl.where(is_behind, tl.load(columns_ptr + index + 1), end)
    return part, block, start, end - start


@triton.jit(do_not_specialize=["num_rows", "first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [num_rows, out_features], changed in place
    planes_ptr,  # [NUM_SPLITS, num_slices, num_rows, planes_width] float32
    table_ptr,  # [num_slots, slot_stride] int64
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_rows] float32
    columns_ptr,  # [num_slices + 1] int64, where each slice starts
    num_rows,
    out_features,
    planes_width,
    first_entry,
    slot_stride,
    NUM_SPLITS: tl.constexpr,
    NUM_SLICES: tl.constexpr,
    ENTRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    STORED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXTRAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, s] += sum over r of shrunk[s, row, r] B[slot(row), s][r]; program (tile, block of columns).

    Blocks are counted through all slices; shrunk is the sum of the planes, in an order that module and tile
    decide. EXTRAS: then the adapter's bias and DoRA gain, if its table entry has their addresses. ALIGNED:
    slices start and end at multiples of 16 columns, so that 16 bytes are read and written at a time.
    ONE_BLOCK: no rank exceeds BLOCK_R.
    """
    tile_ptr = tiles_ptr + tl.program_id(0) * 4
    first_row = tl.load(tile_ptr)
    end_row = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    expert = tl.load(tile_ptr + 3)
    part, block, slice_start, slice_features = find_slice(columns_ptr, tl.program_id(1), NUM_SLICES, BLOCK_N)
    has_adapter = slot >= 0
    entry_ptr = table_ptr + slot * slot_stride + (first_entry + expert * NUM_SLICES + part) * ENTRY
    b_address = tl.load(entry_ptr + 1, mask=has_adapter, other=0)
    rank = tl.load(entry_ptr + 2, mask=has_adapter, other=0).to(tl.int32)
    bias_address = tl.load(entry_ptr + 3, mask=has_adapter, other=0)
    dora_address = tl.load(entry_ptr + 4, mask=has_adapter, other=0)
    b_ptr = b_address.to(tl.pointer_type(out_ptr.dtype.element_ty))
    if ALIGNED:
        b_ptr = tl.multiple_of(b_ptr, 16)
        # Arithmetic that the compiler sees through; it loses hints on what was selected.
        slice_start = (slice_start >> 4) << 4
        slice_features = (slice_features >> 4) << 4

    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    column_is_mine = columns < slice_features
    first_b = columns  # not read unless ONE_BLOCK
    if ONE_BLOCK:
        # On its way while the planes are being made.
        first_b = load_ranks(b_ptr, tl.arange(0, BLOCK_R), rank, slice_features, columns, column_is_mine)
    wait_for_inputs(PDL)
    if rank == 0:
        return
    # The compiler for sm_120 spills registers around the loop without this, with 64 rows because of it.
    tl.assume((rank > 0) | (BLOCK_M > 16))
    rows = first_row + tl.arange(0, BLOCK_M)
    row_is_mine = rows < end_row
    out_ptrs = out_ptr + rows[:, None] * out_features + slice_start + columns[None, :]
    mask = row_is_mine[:, None] & column_is_mine[None, :]
    before = tl.load(out_ptrs, mask=mask, other=0.0)

    num_stored = (rank + STORED - 1) // STORED * STORED
    slice_planes_ptr = planes_ptr + (part * num_rows + rows[:, None]) * planes_width
    plane_stride = num_rows.to(tl.int64) * planes_width * NUM_SLICES
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, rank, BLOCK_R):
        ranks = start + tl.arange(0, BLOCK_R)
        b = first_b if ONE_BLOCK else load_ranks(b_ptr, ranks, rank, slice_features, columns, column_is_mine)
        plane_ptrs = slice_planes_ptr + ranks[None, :]
        is_stored = row_is_mine[:, None] & (ranks < num_stored)[None, :]
        shrunk = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for first in tl.static_range(0, NUM_SPLITS, GROUP):
            splits = first + tl.arange(0, GROUP)
            planes = tl.load(
                plane_ptrs[None, :, :] + splits[:, None, None] * plane_stride,
                mask=is_stored[None, :, :] & (splits < NUM_SPLITS)[:, None, None],
                other=0.0,
            )
            shrunk += tl.sum(planes, axis=0)
        acc = tl.dot(shrunk.to(b.dtype), b, acc, input_precision="ieee")

    total = before.to(tl.float32) + acc
    if EXTRAS:
        scales = tl.load(scales_ptr + rows, mask=row_is_mine, other=0.0)[:, None]
        total = apply_extras(
            total, scales, bias_address, dora_address, slice_features, columns, column_is_mine
        )
    tl.store(out_ptrs, total.to(before.dtype), mask=mask)


def lora_expand(
    out: Tensor,  # [num_rows, out_features], changed in place
    planes: Tensor,  # as `lora_shrink` returns them
    module: LoRAModule,
    lora_pass: Pass,
    *,
    has_extras: bool = True,
    is_joined: bool = False,
) -> None:
    """Add shrunk . B of every row's adapter to its slices; base rows and absent sub-modules keep theirs.

    `has_extras` is whether some adapter of the pass may have a bias or DoRA, `is_joined` whether the planes
    were made on another stream.
    """
    block_rows = check_tiles(lora_pass, out.shape[0], out.device)
    num_tiles = lora_pass.table.shape[0]
    check_expand(out, planes, module)
    if num_tiles == 0:
        return
    num_splits, num_slices, num_rows, width = planes.shape
    num_warps, element_size = NUM_WARPS[block_rows], out.element_size()
    block_rank = min(triton.next_power_of_2(width), COLUMN_BYTES_OF_BLOCK[block_rows] // element_size)
    is_wide = (block_rows, block_rank) == (BLOCK_ROWS[0], BLOCK_RANK)
    row_bytes = ROW_BYTES_OF_BLOCK
    if is_wide and module.max_slice_features >= WIDE_SLICE:
        row_bytes = ROW_BYTES_OF_WIDE_BLOCK
    block_out = row_bytes // element_size
    group = PLANES_IN_REGISTERS * 32 * num_warps // (block_rows * block_rank)
    num_blocks = sum(triton.cdiv(width, block_out) for width in module.out_slices)
    expand_kernel[num_tiles, num_blocks](
        out,
        planes,
        module.table,
        lora_pass.table,
        lora_pass.scales,
        module.columns,
        num_rows,
        module.out_features,
        width,
        module.first_entry,
        module.table.stride(0),
        NUM_SPLITS=num_splits,
        NUM_SLICES=num_slices,
        ENTRY=ENTRY_COLUMNS,
        BLOCK_M=block_rows,
        BLOCK_N=block_out,
        BLOCK_R=block_rank,
        GROUP=min(group, triton.next_power_of_2(num_splits)),
        STORED=BLOCK_RANK,
        ONE_BLOCK=width <= block_rank,
        ALIGNED=module.is_aligned,
        EXTRAS=has_extras,
        num_warps=num_warps,
        num_stages=NUM_STAGES,
        enable_fp_fusion=True,
        **dependent_launch(out.device, follows_other_stream=is_joined),
    )


def check_expand(out: Tensor, planes: Tensor, module: LoRAModule) -> None:
    """Raise ValueError, with the values, for inputs the kernel would misread."""
    expected = planes_shape(out.shape[0], module)
    if tuple(planes.shape) != expected or planes.dtype is not torch.float32 or not planes.is_contiguous():
        raise ValueError(
            f"planes are {tuple(planes.shape)} {planes.dtype} with strides {planes.stride()}; "
            f"they must be contiguous {expected} float32"
        )
    if out.shape[1:] != (module.out_features,) or not out.is_contiguous() or out.dtype is not module.dtype:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} with strides {out.stride()}; "
            f"it must be a contiguous matrix of {module.out_features} columns of {module.dtype}"
        )
    if not out.device == planes.device == module.table.device:
        raise ValueError(
            f"out is on {out.device}, planes on {planes.device}, the table on {module.table.device}: move it"
        )


def lora_expand_reference(
    out: Tensor,  # [num_rows, out_features], changed in place
    planes: Tensor,  # as `lora_shrink` returns them
    module: LoRAModule,
    lora_pass: Pass,
) -> None:
    """Compute `lora_expand` in plain torch, one tile after another, in float32."""
    for start, end, slot, expert in lora_pass.table.tolist():
        weights = None if slot < 0 else module.weights(slot, expert)
        for part in () if weights is None else weights.slices:
            rows = slice(start, end)
            scales, rank = lora_pass.scales[rows, None], part.num_ranks
            columns = out[rows, part.out.start : part.out.end]
            sums = (
                columns.float() + planes[:, module.place(part), rows, :rank].sum(0) @ part.b_t[:rank].float()
            )
            if part.bias is not None:
                sums = sums + scales * part.bias
            columns.copy_(sums if part.dora is None else apply_dora(sums, part.dora, scales))

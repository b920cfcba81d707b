"""LoRA shrink: bring every row down to its adapter's rank, for all slots and sub-modules in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.lora.add import check_tiles
from kernels.lora.segments import BLOCK_ROWS, Pass
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule

BLOCK_RANK = 16
"""Ranks are written in blocks of so many; what lies behind an adapter's last block stays unwritten."""
MIN_SPLIT, MAX_SPLITS, SPLIT_MULTIPLE = 512, 16, 256
"""Columns of x that one program sums, and into how many planes at most. `down` of Llama-3-8B (14336 columns)
has 14, so that 8 tiles are 112 programs; every plane more is one more read of each program of expand."""

# Not yet tuned on a device; what they compile to is bounded by test_shrink.py. Decoding waits for memory: its
# tiles have few rows, and both blocks of a short split are on their way at once.
ROW_BYTES_OF_BLOCK = {16: 512, 32: 256, 64: 256}
MAX_BLOCK_RANK = {16: 32, 32: 64, 64: 64}
NUM_WARPS = 4
NUM_STAGES = 3


def split_width(in_features: int) -> int:
    """Return how many columns of x one program sums: the same in every step, and so a row's bits are too."""
    columns = -(-in_features // MAX_SPLITS)
    return max(MIN_SPLIT, -(-columns // SPLIT_MULTIPLE) * SPLIT_MULTIPLE)


def planes_shape(num_rows: int, module: LoRAModule) -> tuple[int, int, int, int]:
    """Return (num_splits, num_slices, num_rows, max_rank rounded up to 16): what shrink makes of rows."""
    num_splits = triton.cdiv(module.in_features, split_width(module.in_features))
    return num_splits, module.num_slices, num_rows, triton.cdiv(module.max_rank, BLOCK_RANK) * BLOCK_RANK


@triton.jit  # type: ignore[untyped-decorator]
def multiply(  # type: ignore[no-untyped-def]
    x_rows,  # [BLOCK_M] pointers
    a_rows,  # [BLOCK_R] pointers
    row_is_mine,
    rank_is_mine,
    first,
    end,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return x A^T over the columns from `first` to `end`, [BLOCK_M, BLOCK_R] float32."""
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(first, end, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        exists = columns < end
        x = tl.load(
            x_rows[:, None] + columns[None, :], mask=row_is_mine[:, None] & exists[None, :], other=0.0
        )
        a = tl.load(
            a_rows[None, :] + columns[:, None], mask=rank_is_mine[None, :] & exists[:, None], other=0.0
        )
        acc = tl.dot(x, a, acc, input_precision="ieee")
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def multiply_by_warps(  # type: ignore[no-untyped-def]
    x_rows,  # [BLOCK_M] pointers
    a_rows,  # [BLOCK_R] pointers
    row_is_mine,
    rank_is_mine,
    first,
    end,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_PIECES: tl.constexpr,
):
    """Return what `multiply` does, each block's columns shared out among the warps.

    16 rows make one tile of a tensor core: all warps would multiply it, and wait for each product in turn.
    """
    width: tl.constexpr = BLOCK_K // NUM_PIECES
    places = tl.arange(0, NUM_PIECES)[:, None] * width + tl.arange(0, width)[None, :]
    acc = tl.zeros((NUM_PIECES, BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(first, end, BLOCK_K):
        columns = start + places
        exists = columns < end
        x = tl.load(
            x_rows[None, :, None] + columns[:, None, :],
            mask=row_is_mine[None, :, None] & exists[:, None, :],
            other=0.0,
        )
        a = tl.load(
            a_rows[None, None, :] + columns[:, :, None],
            mask=rank_is_mine[None, None, :] & exists[:, :, None],
            other=0.0,
        )
        acc = tl.dot(x, a, acc, input_precision="ieee")
    return tl.sum(acc, axis=0)


@triton.jit(do_not_specialize=["num_rows", "first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [num_rows, in_features]
    planes_ptr,  # [num_splits, num_slices, num_rows, planes_width] float32
    table_ptr,  # [num_slots, slot_stride] int64
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_rows] float32
    num_rows,
    in_features,
    planes_width,
    first_entry,
    slot_stride,
    NUM_SLICES: tl.constexpr,
    ENTRY: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    STORED: tl.constexpr,
    ALIGNED: tl.constexpr,
    LATE: tl.constexpr,
    PDL: tl.constexpr,
):
    """planes[k, s, row, block b] = scale(row) x[row] . A[slot(row), s][ranks of b] over the k-th split.

    Program (tile, b, k * num_slices + s). The adapter's table entry holds A's address and its rank. ALIGNED:
    rows of A and x are multiples of 16 elements, so that 16 bytes are read at a time. LATE: tiles and scales
    are made by a kernel in front.
    """
    wait_for_inputs(PDL & LATE)
    tile_ptr = tiles_ptr + tl.program_id(0) * 4
    first_row = tl.load(tile_ptr)
    end_row = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    expert = tl.load(tile_ptr + 3)
    has_adapter = slot >= 0
    first_rank = tl.program_id(1) * BLOCK_R
    plane = tl.program_id(2)
    place = first_entry + expert * NUM_SLICES + plane % NUM_SLICES
    entry_ptr = table_ptr + slot * slot_stride + place * ENTRY
    a_address = tl.load(entry_ptr, mask=has_adapter, other=0)
    rank = tl.load(entry_ptr + 2, mask=has_adapter, other=0).to(tl.int32)
    rows = first_row + tl.arange(0, BLOCK_M)
    row_is_mine = rows < end_row
    scales = tl.load(scales_ptr + rows, mask=row_is_mine, other=0.0)
    wait_for_inputs(PDL & (not LATE))
    if first_rank >= rank:
        return
    a_ptr = a_address.to(tl.pointer_type(x_ptr.dtype.element_ty))
    if ALIGNED:
        a_ptr = tl.multiple_of(a_ptr, 16)

    ranks = first_rank + tl.arange(0, BLOCK_R)
    # What lies behind the rank is padding or another sub-module's.
    rank_is_mine = ranks < rank

    first = plane // NUM_SLICES * SPLIT
    end = tl.minimum(first + SPLIT, in_features)
    x_rows, a_rows = x_ptr + rows * in_features, a_ptr + ranks.to(tl.int64) * in_features
    if NUM_PIECES == 1:
        acc = multiply(x_rows, a_rows, row_is_mine, rank_is_mine, first, end, BLOCK_M, BLOCK_R, BLOCK_K)
    else:
        acc = multiply_by_warps(
            x_rows, a_rows, row_is_mine, rank_is_mine, first, end, BLOCK_M, BLOCK_R, BLOCK_K, NUM_PIECES
        )
    is_stored = ranks < (rank + STORED - 1) // STORED * STORED
    tl.store(
        planes_ptr + (plane * num_rows + rows[:, None]) * planes_width + ranks[None, :],
        acc * scales[:, None],
        mask=row_is_mine[:, None] & is_stored[None, :],
    )


def lora_shrink(
    x: Tensor,  # [num_rows, in_features]
    module: LoRAModule,
    lora_pass: Pass,
    *,
    is_forked: bool = False,
) -> Tensor:  # [num_splits, num_slices, num_rows, max_rank rounded up to 16] float32, see `planes_shape`
    """Return scale x . A per sub-module, in planes to be added up in their order.

    Rows in no tile and ranks behind an adapter's last block stay unwritten. `is_forked` is whether x was made
    on another stream.
    """
    block_rows = check_tiles(lora_pass, x.shape[0], x.device)
    num_tiles = lora_pass.table.shape[0]
    check_shrink(x, module)
    planes = torch.empty(planes_shape(x.shape[0], module), dtype=torch.float32, device=x.device)
    if num_tiles == 0:
        return planes
    num_splits, num_slices, num_rows, width = planes.shape
    is_aligned = module.in_features % 16 == 0
    row_bytes = ROW_BYTES_OF_BLOCK[block_rows if is_aligned else BLOCK_ROWS[-1]]
    block_rank = min(triton.next_power_of_2(width), MAX_BLOCK_RANK[block_rows])
    shrink_kernel[num_tiles, triton.cdiv(width, block_rank), num_splits * num_slices](
        x,
        planes,
        module.table,
        lora_pass.table,
        lora_pass.scales,
        num_rows,
        module.in_features,
        width,
        module.first_entry,
        module.table.stride(0),
        NUM_SLICES=num_slices,
        ENTRY=ENTRY_COLUMNS,
        SPLIT=split_width(module.in_features),
        BLOCK_M=block_rows,
        BLOCK_R=block_rank,
        BLOCK_K=row_bytes // x.element_size(),
        NUM_PIECES=NUM_WARPS if block_rows == BLOCK_ROWS[0] and x.element_size() == 2 else 1,
        STORED=BLOCK_RANK,
        ALIGNED=is_aligned,
        LATE=lora_pass.made_in_step,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        enable_fp_fusion=True,
        **dependent_launch(x.device, follows_other_stream=is_forked),
    )
    return planes


def check_shrink(x: Tensor, module: LoRAModule) -> None:
    """Raise ValueError, with the values, for inputs the kernel would misread."""
    if x.dim() != 2 or x.shape[1] != module.in_features or not x.is_contiguous():
        raise ValueError(
            f"x is {tuple(x.shape)} with strides {x.stride()}; it must be a contiguous matrix of "
            f"{module.in_features} columns"
        )
    if x.dtype is not module.dtype or x.device != module.table.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, the adapters are {module.dtype} and their table is on "
            f"{module.table.device}; convert x"
        )


def lora_shrink_reference(
    x: Tensor,  # [num_rows, in_features]
    module: LoRAModule,
    lora_pass: Pass,
) -> (
    Tensor
):  # [num_splits, num_slices, num_rows, max_rank rounded up to 16] float32, 0 where nothing is written
    """Compute `lora_shrink` in plain torch, one tile and split after another, in float32."""
    planes, split = torch.zeros(planes_shape(x.shape[0], module), device=x.device), split_width(x.shape[1])
    for start, end, slot, expert in lora_pass.table.tolist():
        weights = None if slot < 0 else module.weights(slot, expert)
        for part in () if weights is None else weights.slices:
            assert weights is not None
            a = weights.a[part.rank.start : part.rank.start + part.num_ranks].float()
            scaled = x[start:end].float() * lora_pass.scales[start:end, None]
            for index, plane in enumerate(planes[:, module.place(part)]):
                columns = slice(index * split, (index + 1) * split)
                plane[start:end, : part.num_ranks] = scaled[:, columns] @ a[:, columns].T
    return planes

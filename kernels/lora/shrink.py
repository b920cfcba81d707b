"""LoRA shrink: bring every row down to its adapter's rank, for all slots and sub-modules in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.add import check_tiles
from kernels.lora.segments import Pass
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule

# Not yet tuned on a device; what they compile to is bounded by test_shrink.py.
BLOCK_IN = 128
BLOCK_RANK = 16
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_rows", "first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [num_rows, in_features]
    shrunk_ptr,  # [num_slices, num_rows, shrunk_width] float32
    table_ptr,  # [num_slots, slot_stride] int64
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_rows] float32
    num_rows,
    in_features,
    shrunk_width,
    first_entry,
    slot_stride,
    NUM_SLICES: tl.constexpr,
    ENTRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """shrunk[s, row, block b] = scale(row) x[row] . A[slot(row), s][ranks of b]; program (tile, b, s).

    The adapter's table entry holds A's address and its rank. ALIGNED: rows of A and x are multiples of 16
    elements, so that 16 bytes are read at a time.
    """
    tile_ptr = tiles_ptr + tl.program_id(0) * 4
    first_rank = tl.program_id(1) * BLOCK_R
    part = tl.program_id(2)
    slot = tl.load(tile_ptr + 2)
    if slot < 0:
        return
    place = first_entry + tl.load(tile_ptr + 3) * NUM_SLICES + part
    entry_ptr = table_ptr + slot * slot_stride + place * ENTRY
    rank = tl.load(entry_ptr + 2)
    if first_rank >= rank:
        return
    a_ptr = tl.load(entry_ptr).to(tl.pointer_type(x_ptr.dtype.element_ty))
    if ALIGNED:
        a_ptr = tl.multiple_of(a_ptr, 16)

    rows = tl.load(tile_ptr) + tl.arange(0, BLOCK_M)
    row_is_mine = rows < tl.load(tile_ptr + 1)
    ranks = first_rank + tl.arange(0, BLOCK_R)
    # What lies behind the rank is padding or another sub-module's.
    rank_is_mine = ranks < rank

    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        column_exists = columns < in_features
        x = tl.load(
            x_ptr + rows[:, None] * in_features + columns[None, :],
            mask=row_is_mine[:, None] & column_exists[None, :],
            other=0.0,
        )
        a = tl.load(
            a_ptr + ranks[None, :].to(tl.int64) * in_features + columns[:, None],
            mask=rank_is_mine[None, :] & column_exists[:, None],
            other=0.0,
        )
        acc = tl.dot(x, a, acc, input_precision="ieee")

    scales = tl.load(scales_ptr + rows, mask=row_is_mine, other=0.0)
    shrunk_rows = (part * num_rows + rows) * shrunk_width
    tl.store(
        shrunk_ptr + shrunk_rows[:, None] + ranks[None, :],
        acc * scales[:, None],
        mask=row_is_mine[:, None],
    )


def lora_shrink(
    x: Tensor,  # [num_rows, in_features]
    module: LoRAModule,
    lora_pass: Pass,
) -> Tensor:  # [num_slices, num_rows, max_rank rounded up to 16] float32
    """Return scale x . A per sub-module; base rows and ranks past an adapter's last block stay unwritten."""
    block_rows = check_tiles(lora_pass, x.shape[0], x.device)
    num_tiles = lora_pass.table.shape[0]
    check_shrink(x, module)
    num_blocks = triton.cdiv(module.max_rank, BLOCK_RANK)
    num_rows, width = x.shape[0], num_blocks * BLOCK_RANK
    shrunk = torch.empty(module.num_slices, num_rows, width, dtype=torch.float32, device=x.device)
    if num_tiles == 0:
        return shrunk
    shrink_kernel[num_tiles, num_blocks, module.num_slices](
        x,
        shrunk,
        module.table,
        lora_pass.table,
        lora_pass.scales,
        num_rows,
        module.in_features,
        width,
        module.first_entry,
        module.table.stride(0),
        NUM_SLICES=module.num_slices,
        ENTRY=ENTRY_COLUMNS,
        BLOCK_M=block_rows,
        BLOCK_R=BLOCK_RANK,
        BLOCK_K=BLOCK_IN,
        ALIGNED=module.in_features % 16 == 0,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return shrunk


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
) -> Tensor:  # [num_slices, num_rows, max_rank rounded up to 16] float32, zero where nothing is written
    """Compute `lora_shrink` in plain torch, one tile after another, in float32."""
    width = triton.cdiv(module.max_rank, BLOCK_RANK) * BLOCK_RANK
    shrunk = torch.zeros(module.num_slices, x.shape[0], width, device=x.device)
    for start, end, slot, expert in lora_pass.table.tolist():
        weights = None if slot < 0 else module.weights(slot, expert)
        for part in () if weights is None else weights.slices:
            assert weights is not None
            a = weights.a[part.rank.start : part.rank.start + part.num_ranks]
            product = x[start:end].float() @ a.float().T * lora_pass.scales[start:end, None]
            shrunk[module.place(part), start:end, : part.num_ranks] = product
    return shrunk

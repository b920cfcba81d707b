"""LoRA expand: add every row's low-rank product to the packed output, in place, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.add import check_tiles
from kernels.lora.reference import apply_dora
from kernels.lora.segments import Pass
from kernels.lora.shrink import BLOCK_RANK
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule

# Not yet tuned on a device; what they compile to is bounded by test_expand.py.
BLOCK_OUT = 128
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_rows", "first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [num_rows, out_features], changed in place
    shrunk_ptr,  # [num_slices, num_rows, shrunk_width] float32
    table_ptr,  # [num_slots, slot_stride] int64
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_rows] float32
    columns_ptr,  # [num_slices + 1] int64, where each slice starts
    num_rows,
    out_features,
    shrunk_width,
    first_entry,
    slot_stride,
    NUM_SLICES: tl.constexpr,
    ENTRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXTRAS: tl.constexpr,
):
    """out[row, s] += sum over r of shrunk[s, row, r] B[slot(row), s][r]; program (tile, columns, s).

    EXTRAS: then the adapter's bias and DoRA gain, if its table entry has their addresses. ALIGNED: slices
    start and end at multiples of 16 columns, so that 16 bytes are read and written at a time.
    """
    tile_ptr = tiles_ptr + tl.program_id(0) * 4
    part = tl.program_id(2)
    slot = tl.load(tile_ptr + 2)
    if slot < 0:
        return
    place = first_entry + tl.load(tile_ptr + 3) * NUM_SLICES + part
    entry_ptr = table_ptr + slot * slot_stride + place * ENTRY
    rank = tl.load(entry_ptr + 2)
    slice_start = tl.load(columns_ptr + part)
    slice_features = tl.load(columns_ptr + part + 1) - slice_start
    if (rank == 0) | (tl.program_id(1) * BLOCK_N >= slice_features):
        return
    b_ptr = tl.load(entry_ptr + 1).to(tl.pointer_type(out_ptr.dtype.element_ty))
    if ALIGNED:
        b_ptr = tl.multiple_of(b_ptr, 16)
        slice_start = tl.multiple_of(slice_start, 16)
        slice_features = tl.multiple_of(slice_features, 16)

    rows = tl.load(tile_ptr) + tl.arange(0, BLOCK_M)
    row_is_mine = rows < tl.load(tile_ptr + 1)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_is_mine = columns < slice_features
    shrunk_rows = (part * num_rows + rows) * shrunk_width

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, rank, BLOCK_R):
        ranks = start + tl.arange(0, BLOCK_R)
        rank_is_mine = ranks < rank
        shrunk = tl.load(
            shrunk_ptr + shrunk_rows[:, None] + ranks[None, :],
            mask=row_is_mine[:, None] & rank_is_mine[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + ranks[:, None] * slice_features + columns[None, :],
            mask=rank_is_mine[:, None] & column_is_mine[None, :],
            other=0.0,
        )
        acc = tl.dot(shrunk.to(b.dtype), b, acc, input_precision="ieee")

    out_ptrs = out_ptr + rows[:, None] * out_features + slice_start + columns[None, :]
    mask = row_is_mine[:, None] & column_is_mine[None, :]
    before = tl.load(out_ptrs, mask=mask, other=0.0)
    total = before.to(tl.float32) + acc
    if EXTRAS:
        scales = tl.load(scales_ptr + rows, mask=row_is_mine, other=0.0)[:, None]
        bias_address = tl.load(entry_ptr + 3)
        if bias_address != 0:
            bias_ptr = bias_address.to(tl.pointer_type(tl.float32))
            total += scales * tl.load(bias_ptr + columns, mask=column_is_mine, other=0.0)[None, :]
        dora_address = tl.load(entry_ptr + 4)
        if dora_address != 0:
            term_ptrs = dora_address.to(tl.pointer_type(tl.float32)) + columns
            magnitude = tl.load(term_ptrs, mask=column_is_mine, other=0.0)[None, :]
            norm = tl.load(term_ptrs + slice_features, mask=column_is_mine, other=1.0)[None, :]
            cross = tl.load(term_ptrs + 2 * slice_features, mask=column_is_mine, other=0.0)[None, :]
            delta = tl.load(term_ptrs + 3 * slice_features, mask=column_is_mine, other=0.0)[None, :]
            base_bias = tl.load(term_ptrs + 4 * slice_features, mask=column_is_mine, other=0.0)[None, :]
            gain = magnitude / tl.sqrt(norm + scales * (cross + scales * delta))
            total = gain * (total - base_bias) + base_bias
    tl.store(out_ptrs, total.to(before.dtype), mask=mask)


def lora_expand(
    out: Tensor,  # [num_rows, out_features], changed in place
    shrunk: Tensor,  # [num_slices, num_rows, max_rank rounded up to 16] float32
    module: LoRAModule,
    lora_pass: Pass,
    *,
    has_extras: bool = True,
) -> None:
    """Add shrunk . B of every row's adapter to its slices; base rows and absent sub-modules keep theirs.

    `has_extras` is whether some adapter of the pass may have a bias or DoRA.
    """
    block_rows = check_tiles(lora_pass, out.shape[0], out.device)
    num_tiles = lora_pass.table.shape[0]
    check_expand(out, shrunk, module)
    if num_tiles == 0:
        return
    num_blocks = triton.cdiv(module.max_slice_features, BLOCK_OUT)
    expand_kernel[num_tiles, num_blocks, module.num_slices](
        out,
        shrunk,
        module.table,
        lora_pass.table,
        lora_pass.scales,
        module.columns,
        out.shape[0],
        out.shape[1],
        shrunk.shape[2],
        module.first_entry,
        module.table.stride(0),
        NUM_SLICES=module.num_slices,
        ENTRY=ENTRY_COLUMNS,
        BLOCK_M=block_rows,
        BLOCK_N=BLOCK_OUT,
        BLOCK_R=BLOCK_RANK,
        ALIGNED=module.is_aligned,
        EXTRAS=has_extras,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )


def check_expand(out: Tensor, shrunk: Tensor, module: LoRAModule) -> None:
    """Raise ValueError, with the values, for inputs the kernel would misread."""
    width = triton.cdiv(module.max_rank, BLOCK_RANK) * BLOCK_RANK
    expected = (module.num_slices, out.shape[0], width)
    if tuple(shrunk.shape) != expected or shrunk.dtype is not torch.float32 or not shrunk.is_contiguous():
        raise ValueError(
            f"shrunk is {tuple(shrunk.shape)} {shrunk.dtype} with strides {shrunk.stride()}; "
            f"it must be contiguous {expected} float32"
        )
    if out.shape[1:] != (module.out_features,) or not out.is_contiguous() or out.dtype is not module.dtype:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} with strides {out.stride()}; "
            f"it must be a contiguous matrix of {module.out_features} columns of {module.dtype}"
        )
    if not out.device == shrunk.device == module.table.device:
        raise ValueError(
            f"out is on {out.device}, shrunk on {shrunk.device}, the table on {module.table.device}: move it"
        )


def lora_expand_reference(
    out: Tensor,  # [num_rows, out_features], changed in place
    shrunk: Tensor,  # [num_slices, num_rows, max_rank rounded up to 16] float32
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
            sums = columns.float() + shrunk[module.place(part), rows, :rank] @ part.b_t[:rank].float()
            if part.bias is not None:
                sums = sums + scales * part.bias
            columns.copy_(sums if part.dora is None else apply_dora(sums, part.dora, scales))

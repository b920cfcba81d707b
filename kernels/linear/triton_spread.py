"""Spreads quantised rows out into plain ones on a GPU, for products of many rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.linear.quantized_weight import QuantizedWeight
from kernels.linear.triton_codes import Coding, columns_of, load_blocks, numbers, tensors_of
from kernels.linear.triton_look_up import load_words

MAX_TILE_BYTES = 32 << 20
"""Of plain rows at a time: what is written is read again from the second-level cache, 50 MB on an H100."""
ROW_MULTIPLE = 128
BLOCK_ROWS, BLOCK_COLUMNS = 16, 256
NUM_WARPS = 4


@triton.jit(do_not_specialize=["first_row", "end_row"])  # type: ignore[untyped-decorator]
def spread_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [end_row - first_row, in_features]
    codes_ptr,  # [out_features, row_bytes] uint8
    scales_ptr,  # [num_blocks] float32
    zeros_ptr,  # [num_blocks] uint8; not read unless HAS_ZEROS
    table_ptr,  # [16] float32; not read unless HAS_TABLE
    first_row,
    end_row,
    in_features,
    row_bytes,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PERMUTES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row - first_row, k] = (number(code) - zero) scale, rounded once; program (rows, columns)."""
    places = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = first_row + places
    row_exists = rows < end_row
    out_rows = out_ptr + places.to(tl.int64) * in_features
    code_rows = codes_ptr + rows.to(tl.int64) * row_bytes
    positions = rows.to(tl.int64) * in_features
    first_blocks, phases = positions // BLOCK, (positions % BLOCK).to(tl.int32)
    HALVES: tl.constexpr = 8 // BITS
    bytes_at = tl.arange(0, PIECE // HALVES)
    words = ()
    if PERMUTES:
        words = load_words(table_ptr)
    wait_for_inputs(PDL)
    for step in tl.static_range(0, COLUMNS, PIECE):
        start = tl.program_id(1) * COLUMNS + step
        at = start // HALVES + bytes_at
        codes = tl.load(
            code_rows[:, None] + at[None, :], mask=row_exists[:, None] & (at < row_bytes)[None, :], other=0
        )
        scales, zeros = 0.0, 0.0
        if WHOLE:
            scales, zeros = load_blocks(
                scales_ptr,
                zeros_ptr,
                first_blocks + start // BLOCK,
                row_exists & (start < in_features),
                HAS_TABLE,
                HAS_ZEROS,
            )
            scales, zeros = scales[:, None], zeros[:, None]
        values = numbers(codes, words, table_ptr, BITS, HAS_TABLE, PERMUTES)
        for half in tl.static_range(HALVES):
            columns = start + columns_of(bytes_at, half, BITS)
            exists = row_exists[:, None] & (columns < in_features)[None, :]
            if not WHOLE:
                scales, zeros = load_blocks(
                    scales_ptr,
                    zeros_ptr,
                    first_blocks[:, None] + (phases[:, None] + columns[None, :]) // BLOCK,
                    exists,
                    HAS_TABLE,
                    HAS_ZEROS,
                )
            weights = (values[half] - zeros) * scales
            out_ptrs = out_rows[:, None] + columns[None, :]
            tl.store(out_ptrs, weights.to(out_ptr.dtype.element_ty), mask=exists)


def spread_rows(weight: QuantizedWeight, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the weight tile after tile: its rows from one to before another, [rows, in_features] of a dtype.

    All tiles lie in the same memory: a tile is good until the next one is asked for.
    """
    width = weight.in_features
    height = max(1, MAX_TILE_BYTES // (width * dtype.itemsize) // ROW_MULTIPLE) * ROW_MULTIPLE
    tile = weight.scales.new_empty((min(height, weight.out_features), width), dtype=dtype)
    for start in range(0, weight.out_features, height):
        end = min(start + height, weight.out_features)
        spread_kernel[triton.cdiv(end - start, BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS)](
            tile,
            *tensors_of(weight),
            start,
            end,
            width,
            weight.codes.shape[1],
            **Coding.of(weight).constants(),
            BLOCK_R=BLOCK_ROWS,
            COLUMNS=BLOCK_COLUMNS,
            num_warps=NUM_WARPS,
            **dependent_launch(tile.device),
        )
        yield start, end, tile[: end - start]

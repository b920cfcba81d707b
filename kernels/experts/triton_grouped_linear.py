"""The product of sorted rows with their experts' weights on a GPU, all experts in one launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import cards
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.experts.grouped_linear import empty_product
from kernels.experts.sort_by_expert import SortedRows


class Block(NamedTuple):
    """What a program multiplies at once, and how many blocks are on their way."""

    columns: int
    row_bytes: int  # of x and of the weight
    num_warps: int
    num_stages: int


# By a tile's rows. As vLLM's tuned tables for an H100 have it (2025); not yet measured here. Few rows wait
# for memory: their blocks are small, so that few experts still are many programs.
BLOCKS = {
    16: Block(64, 256, 4, 4),
    32: Block(128, 128, 4, 4),
    64: Block(128, 128, 4, 4),
    128: Block(128, 128, 8, 3),
}
LARGE_BLOCK = Block(256, 128, 8, 4)
"""For 128 rows on cards with more than 200 KB of shared memory."""
_LARGE_CAPABILITIES = (9, 10)
NARROW_COLUMNS, FEW_PROGRAMS = 32, 264
"""Where there would be fewer programs than two for each of an H100's processors, they have fewer columns."""
UNALIGNED_BLOCK = Block(32, 64, 4, 2)
"""For rows that are no multiples of 16 elements, which are read two bytes at a time."""
BLOCKS_FLOAT32 = {
    16: Block(64, 256, 4, 3),
    32: Block(64, 128, 4, 3),
    64: Block(64, 128, 8, 3),
    128: Block(32, 128, 8, 3),
}
"""Without tensor cores every product is in registers."""


@triton.jit  # type: ignore[untyped-decorator]
def grouped_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [num_sorted, in_features], or GATHERS [num_rows, in_features]
    weight_ptr,  # [num_experts, out_features, in_features]
    bias_ptr,  # [num_experts, out_features], read if BIASED
    out_ptr,  # [num_sorted, out_features]
    sources_ptr,  # [num_sorted] int64
    tiles_ptr,  # [num_tiles, 3] int64: start, end (0: idle), expert
    in_features,
    out_features,
    GATHERS: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, block n] = x[row] . weight[expert of the tile, n] + its bias; program (tile, n).

    Columns are summed in one order, whatever the tile. EVEN: they are a multiple of BLOCK_K. Tiles come first
    in the grid, so that those of one expert follow one another, and find its weights in the cache.
    """
    wait_for_inputs(PDL)
    tile_ptr = tiles_ptr + tl.program_id(0) * 3
    first_row = tl.load(tile_ptr)
    end_row = tl.load(tile_ptr + 1)
    expert = tl.load(tile_ptr + 2)
    if first_row >= end_row:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    row_is_mine = rows < end_row
    sources = rows
    if GATHERS:
        sources = tl.load(sources_ptr + rows, mask=row_is_mine, other=0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_is_mine = columns < out_features
    x_rows = x_ptr + sources * in_features
    w_rows = weight_ptr + (expert * out_features + columns) * in_features
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        x_mask, w_mask = row_is_mine[:, None], column_is_mine[None, :]
        if not EVEN:
            x_mask &= (features < in_features)[None, :]
            w_mask &= (features < in_features)[:, None]
        x = tl.load(x_rows[:, None] + features[None, :], mask=x_mask, other=0.0)
        w = tl.load(w_rows[None, :] + features[:, None], mask=w_mask, other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if BIASED:
        bias = tl.load(bias_ptr + expert * out_features + columns, mask=column_is_mine, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    out_ptrs = out_ptr + rows[:, None] * out_features + columns[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=row_is_mine[:, None] & column_is_mine[None, :])


def grouped_linear_triton(
    x: Tensor,  # [num_sorted_rows, in_features], or with `gathers` [num_rows, in_features]
    weight: Tensor,  # [num_experts, out_features, in_features]
    rows: SortedRows,
    gathers: bool,
    bias: Tensor | None = None,  # [num_experts, out_features]
) -> Tensor:  # [num_sorted_rows, out_features]
    """Compute `grouped_linear_reference`."""
    out, device_rows = empty_product(x, weight, rows, gathers, bias)
    out_features, in_features = weight.shape[1:]
    num_tiles = device_rows.tiles.shape[0]
    block = block_for(device_rows.tile_rows, num_tiles, weight)
    block_depth = block.row_bytes // x.element_size()
    if num_tiles:
        grouped_linear_kernel[num_tiles, triton.cdiv(out_features, block.columns)](
            x,
            weight,
            out if bias is None else bias,
            out,
            device_rows.sources,
            device_rows.tiles,
            in_features,
            out_features,
            GATHERS=gathers,
            EVEN=in_features % block_depth == 0,
            BIASED=bias is not None,
            BLOCK_M=device_rows.tile_rows,
            BLOCK_N=block.columns,
            BLOCK_K=block_depth,
            num_warps=block.num_warps,
            num_stages=block.num_stages,
            **dependent_launch(x.device),
        )
    return out


def block_for(tile_rows: int, num_tiles: int, weight: Tensor) -> Block:
    """Return the block for so many tiles of so many rows; its columns alone depend on their number."""
    out_features, in_features = weight.shape[1:]
    if in_features % 16:
        return UNALIGNED_BLOCK
    if weight.dtype is torch.float32:
        block = BLOCKS_FLOAT32[tile_rows]
    elif tile_rows == max(BLOCKS) and cards.capability(weight.device) in _LARGE_CAPABILITIES:
        block = LARGE_BLOCK
    else:
        block = BLOCKS[tile_rows]
    if tile_rows == min(BLOCKS) and num_tiles * triton.cdiv(out_features, block.columns) < FEW_PROGRAMS:
        return block._replace(columns=NARROW_COLUMNS)
    return block

"""LoRA shrink: bring every row down to its adapter's rank, for all slots and sub-modules in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.pages import PAGE_RANKS, DeviceTiles, LoRAPages

# Not yet tuned on a device; compiles for sm_80 and sm_90 without spills (triton 3.7.1, 2026-11).
BLOCK_IN = 128
NUM_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [num_rows, in_features]
    a_pool_ptr,  # [num_a_pages, 16, in_features]
    shrunk_ptr,  # [num_slices, num_rows, max_pages * 16] float32
    a_pages_ptr,  # [num_slices, num_slots, max_pages]
    ranks_ptr,  # [num_slices, num_slots]
    tile_starts_ptr,
    tile_ends_ptr,
    tile_slots_ptr,
    tile_scales_ptr,
    num_rows,
    in_features,
    num_slots,
    max_pages,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """shrunk[s, row, p*16 : p*16+16] = scale(row) x[row] . A[s, slot(row)][page p]; program (tile, p, s)."""
    tile = tl.program_id(0)
    page = tl.program_id(1)
    part = tl.program_id(2)
    slot = tl.load(tile_slots_ptr + tile)
    if slot < 0:
        return
    place = part * num_slots + slot
    rank = tl.load(ranks_ptr + place)
    if page * PAGE >= rank:
        return

    rows = tl.load(tile_starts_ptr + tile) + tl.arange(0, BLOCK_M)
    row_is_mine = rows < tl.load(tile_ends_ptr + tile)
    ranks = tl.arange(0, PAGE)
    # The pool's rows past the rank may hold what a wider adapter left there.
    rank_is_mine = page * PAGE + ranks < rank
    page_number = tl.load(a_pages_ptr + place * max_pages + page).to(tl.int64)
    a_page_ptr = a_pool_ptr + page_number * PAGE * in_features

    acc = tl.zeros((BLOCK_M, PAGE), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        column_exists = columns < in_features
        x = tl.load(
            x_ptr + rows[:, None].to(tl.int64) * in_features + columns[None, :],
            mask=row_is_mine[:, None] & column_exists[None, :],
            other=0.0,
        )
        a = tl.load(
            a_page_ptr + ranks[None, :] * in_features + columns[:, None],
            mask=rank_is_mine[None, :] & column_exists[:, None],
            other=0.0,
        )
        acc = tl.dot(x, a, acc, input_precision="ieee")

    width = max_pages * PAGE
    shrunk_rows = (part * num_rows + rows).to(tl.int64) * width
    tl.store(
        shrunk_ptr + shrunk_rows[:, None] + page * PAGE + ranks[None, :],
        acc * tl.load(tile_scales_ptr + tile),
        mask=row_is_mine[:, None],
    )


def lora_shrink(
    x: Tensor,  # [num_rows, in_features]
    pages: LoRAPages,
    tiles: DeviceTiles,
) -> Tensor:  # [num_slices, num_rows, max_pages * 16] float32
    """Return scale x . A per sub-module; base rows and ranks past an adapter's last page stay unwritten."""
    check_shrink(x, pages, tiles)
    num_rows = x.shape[0]
    shrunk = torch.empty(
        pages.num_slices, num_rows, pages.max_pages * PAGE_RANKS, dtype=torch.float32, device=x.device
    )
    if tiles.num_tiles == 0:
        return shrunk
    shrink_kernel[tiles.num_tiles, pages.max_pages, pages.num_slices](
        x,
        pages.a_pool,
        shrunk,
        pages.a_pages,
        pages.ranks,
        tiles.starts,
        tiles.ends,
        tiles.slots,
        tiles.scales,
        num_rows,
        pages.in_features,
        pages.num_slots,
        pages.max_pages,
        PAGE=PAGE_RANKS,
        BLOCK_M=tiles.block_rows,
        BLOCK_K=BLOCK_IN,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return shrunk


def check_shrink(x: Tensor, pages: LoRAPages, tiles: DeviceTiles) -> None:
    """Raise ValueError, with the values, for inputs the kernel would misread."""
    pages.check()
    tiles.check()
    if x.dim() != 2 or x.shape[1] != pages.in_features or not x.is_contiguous():
        raise ValueError(
            f"x is {tuple(x.shape)} with strides {x.stride()}; it must be a contiguous matrix of "
            f"{pages.in_features} columns"
        )
    if x.dtype is not pages.a_pool.dtype or x.device != pages.a_pool.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, A is {pages.a_pool.dtype} on {pages.a_pool.device}; convert x"
        )


def lora_shrink_reference(
    x: Tensor,  # [num_rows, in_features]
    pages: LoRAPages,
    tiles: DeviceTiles,
) -> Tensor:  # [num_slices, num_rows, max_pages * 16] float32, zero where the kernel leaves rows unwritten
    """Compute `lora_shrink` in plain torch, one tile after another, in float32."""
    shrunk = torch.zeros(pages.num_slices, x.shape[0], pages.max_pages * PAGE_RANKS, device=x.device)
    columns = tiles.starts, tiles.ends, tiles.slots, tiles.scales
    for start, end, slot, scale in zip(*(column.tolist() for column in columns), strict=True):
        if slot < 0:
            continue
        for part in range(pages.num_slices):
            rank = int(pages.ranks[part, slot])
            numbers = pages.a_pages[part, slot, : -(-rank // PAGE_RANKS)].long()
            a = pages.a_pool[numbers].reshape(-1, pages.in_features)[:rank]
            shrunk[part, start:end, :rank] = x[start:end].float() @ a.float().T * scale
    return shrunk

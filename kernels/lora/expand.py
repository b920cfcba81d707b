"""LoRA expand: add every row's low-rank product to the packed output, in place, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.pages import PAGE_RANKS, DeviceTiles, LoRAPages

# Not yet tuned on a device; compiles for sm_80 and sm_90 without spills (triton 3.7.1, 2026-11).
BLOCK_OUT = 128
NUM_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [num_rows, out_features], changed in place
    shrunk_ptr,  # [num_slices, num_rows, max_pages * 16] float32
    b_pool_ptr,  # [num_elements]
    b_offsets_ptr,  # [num_slices, num_slots, max_pages]
    ranks_ptr,  # [num_slices, num_slots]
    slice_starts_ptr,  # [num_slices + 1]
    tile_starts_ptr,
    tile_ends_ptr,
    tile_slots_ptr,
    num_rows,
    out_features,
    num_slots,
    max_pages,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[row, s] += sum over p of shrunk[s, row, p] . B[s, slot(row)][p]; program (tile, columns, s)."""
    tile = tl.program_id(0)
    part = tl.program_id(2)
    slot = tl.load(tile_slots_ptr + tile)
    if slot < 0:
        return
    place = part * num_slots + slot
    rank = tl.load(ranks_ptr + place)
    slice_start = tl.load(slice_starts_ptr + part)
    slice_features = tl.load(slice_starts_ptr + part + 1) - slice_start
    if (rank == 0) | (tl.program_id(1) * BLOCK_N >= slice_features):
        return

    rows = tl.load(tile_starts_ptr + tile) + tl.arange(0, BLOCK_M)
    row_is_mine = rows < tl.load(tile_ends_ptr + tile)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_is_mine = columns < slice_features
    ranks = tl.arange(0, PAGE)
    shrunk_rows = (part * num_rows + rows).to(tl.int64) * (max_pages * PAGE)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for page in range(tl.cdiv(rank, PAGE)):
        rank_is_mine = page * PAGE + ranks < rank
        shrunk = tl.load(
            shrunk_ptr + shrunk_rows[:, None] + page * PAGE + ranks[None, :],
            mask=row_is_mine[:, None] & rank_is_mine[None, :],
            other=0.0,
        )
        b = tl.load(
            b_pool_ptr
            + tl.load(b_offsets_ptr + place * max_pages + page)
            + ranks[:, None] * slice_features
            + columns[None, :],
            mask=rank_is_mine[:, None] & column_is_mine[None, :],
            other=0.0,
        )
        acc = tl.dot(shrunk.to(b.dtype), b, acc, input_precision="ieee")

    out_ptrs = out_ptr + rows[:, None].to(tl.int64) * out_features + slice_start + columns[None, :]
    mask = row_is_mine[:, None] & column_is_mine[None, :]
    before = tl.load(out_ptrs, mask=mask, other=0.0)
    tl.store(out_ptrs, (before.to(tl.float32) + acc).to(before.dtype), mask=mask)


def lora_expand(
    out: Tensor,  # [num_rows, out_features], changed in place
    shrunk: Tensor,  # [num_slices, num_rows, max_pages * 16] float32
    pages: LoRAPages,
    tiles: DeviceTiles,
) -> None:
    """Add shrunk . B of every row's adapter to its slices; base rows and absent sub-modules keep theirs."""
    check_expand(out, shrunk, pages, tiles)
    if tiles.num_tiles == 0:
        return
    num_blocks = triton.cdiv(pages.max_slice_features, BLOCK_OUT)
    expand_kernel[tiles.num_tiles, num_blocks, pages.num_slices](
        out,
        shrunk,
        pages.b_pool,
        pages.b_offsets,
        pages.ranks,
        pages.slice_starts,
        tiles.starts,
        tiles.ends,
        tiles.slots,
        out.shape[0],
        out.shape[1],
        pages.num_slots,
        pages.max_pages,
        PAGE=PAGE_RANKS,
        BLOCK_M=tiles.block_rows,
        BLOCK_N=BLOCK_OUT,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )


def check_expand(out: Tensor, shrunk: Tensor, pages: LoRAPages, tiles: DeviceTiles) -> None:
    """Raise ValueError, with the values, for inputs the kernel would misread."""
    pages.check()
    tiles.check()
    expected = (pages.num_slices, out.shape[0], pages.max_pages * PAGE_RANKS)
    if tuple(shrunk.shape) != expected or shrunk.dtype is not torch.float32 or not shrunk.is_contiguous():
        raise ValueError(
            f"shrunk is {tuple(shrunk.shape)} {shrunk.dtype} with strides {shrunk.stride()}; "
            f"it must be contiguous {expected} float32"
        )
    if out.dim() != 2 or not out.is_contiguous() or out.dtype is not pages.b_pool.dtype:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} with strides {out.stride()}; "
            f"it must be a contiguous matrix of {pages.b_pool.dtype}"
        )
    if not out.device == shrunk.device == pages.b_pool.device:
        raise ValueError(
            f"out is on {out.device}, shrunk on {shrunk.device}, B on {pages.b_pool.device}; move them"
        )


def lora_expand_reference(
    out: Tensor,  # [num_rows, out_features], changed in place
    shrunk: Tensor,  # [num_slices, num_rows, max_pages * 16] float32
    pages: LoRAPages,
    tiles: DeviceTiles,
) -> None:
    """Compute `lora_expand` in plain torch, one tile after another, in float32."""
    bounds = pages.slice_starts.tolist()
    for start, end, slot in zip(
        tiles.starts.tolist(), tiles.ends.tolist(), tiles.slots.tolist(), strict=True
    ):
        if slot < 0:
            continue
        for part in range(pages.num_slices):
            rank = int(pages.ranks[part, slot])
            columns = slice(bounds[part], bounds[part + 1])
            delta = shrunk[part, start:end, :rank] @ _gather_b(pages, part, slot, rank).float()
            out[start:end, columns] = (out[start:end, columns].float() + delta).to(out.dtype)


def _gather_b(pages: LoRAPages, part: int, slot: int, rank: int) -> Tensor:  # [rank, out_slice]
    width = int(pages.slice_starts[part + 1] - pages.slice_starts[part])
    found = [pages.b_pool.new_zeros(0, width)]
    for page in range(-(-rank // PAGE_RANKS)):
        offset = int(pages.b_offsets[part, slot, page])
        found.append(pages.b_pool[offset : offset + PAGE_RANKS * width].view(PAGE_RANKS, width))
    return torch.cat(found)[:rank]

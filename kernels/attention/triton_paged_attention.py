"""Attention over the paged cache on a GPU: rows that decode, in splits, and prompts, in one pass."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from kernels.attention import triton_tiles as tiles
from kernels.attention.paged_attention import HeadNorms, check_sinks
from kernels.attention.triton_prompt_attention import attend_prompts_kernel
from kernels.attention.triton_rotate_store import rotate_store
from kernels.attention.triton_split_attention import attend_splits_kernel, merge_splits_kernel
from kernels.dependent_launch import dependent_launch

_NO_WINDOW = 2**30


def paged_attention_triton(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    sequence_rows: Tensor,
    block_tables: Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    head_norms: HeadNorms | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute `PagedAttention` in three launches; four if there are more rows than sequences.

    Sequences of one row are cut into splits, whose partial sums a second launch adds up; only they have
    partial sums in memory: at most 16 for each sequence and head. Longer ones are summed in one pass. If no
    sequence can be longer than one split, there is nothing to add up, and a launch less.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}: weights are cut off at the greatest score")
    if sinks is not None:
        check_sinks(sinks, qkv.shape[1] // keys.shape[3] - 2 * keys.shape[1])
    # The queries' memory is the result's as well: a program replaces what it alone has read. Rows in no
    # sequence are 0 from the beginning.
    out = rotate_store(qkv, keys, values, cos, sin, sequence_rows, block_tables, head_norms)
    num_rows, num_seqs = out.shape[0], sequence_rows.shape[0]
    factor, cap_factor = scale * math.log2(math.e), 0.0
    if softcap is not None:
        factor, cap_factor = softcap * math.log2(math.e), 2 * factor / softcap
    step = out, keys, values, sequence_rows, block_tables
    is_mixed = num_rows > num_seqs
    _attend_single_rows(*step, window, factor, cap_factor, sinks, is_mixed=is_mixed)
    if is_mixed:
        _attend_prompts(*step, window, factor, cap_factor, sinks)
    return out


def _attend_single_rows(
    out: Tensor,  # [num_rows, num_heads * head_dim], queries before
    keys: Tensor,
    values: Tensor,
    sequence_rows: Tensor,
    block_tables: Tensor,
    window: int | None,
    factor: float,
    cap_factor: float,
    sinks: Tensor | None,
    *,
    is_mixed: bool,
) -> None:
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_seqs, num_heads = sequence_rows.shape[0], out.shape[1] // head_dim
    group = num_heads // num_kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    tile = tiles.decode_tile(out.dtype, block_d, group, out.device)
    num_tokens = block_tables.shape[1] * block_size
    num_splits = min(tiles.MOST_SPLITS.value, triton.cdiv(num_tokens, tiles.LEAST_SPLIT.value))
    parts = sums = out
    if num_splits > 1:
        parts, sums = (
            torch.empty((num_seqs, num_heads, num_splits, width), dtype=torch.float32, device=out.device)
            for width in (head_dim, 2)
        )
    share = tiles.ENOUGH_PROGRAMS // (num_seqs * num_kv_heads)
    grid = num_seqs, num_kv_heads, min(num_splits, max(share, tiles.LEAST_PROGRAMS_A_HEAD))
    attend_splits_kernel[grid](
        out,
        keys,
        values,
        sequence_rows,
        block_tables,
        out if sinks is None else sinks,
        parts,
        sums,
        block_tables.shape[1],
        num_splits,
        window or _NO_WINDOW,
        int(is_mixed),
        factor,
        cap_factor,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WHOLE=num_splits == 1,
        CAPS=cap_factor > 0,
        WINDOWED=window is not None,
        SINKS=sinks is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **dependent_launch(out.device),
    )
    if num_splits > 1:
        merge_splits_kernel[num_seqs, num_heads](
            parts,
            sums,
            sequence_rows,
            out if sinks is None else sinks,
            out,
            num_splits,
            window or _NO_WINDOW,
            int(is_mixed),
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            SINKS=sinks is not None,
            BLOCK_D=block_d,
            num_warps=1 if block_d < 256 else 2,
            **dependent_launch(out.device),
        )


def _attend_prompts(
    out: Tensor,  # [num_rows, num_heads * head_dim], queries before
    keys: Tensor,
    values: Tensor,
    sequence_rows: Tensor,
    block_tables: Tensor,
    window: int | None,
    factor: float,
    cap_factor: float,
    sinks: Tensor | None,
) -> None:
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_rows, num_seqs, num_heads = out.shape[0], sequence_rows.shape[0], out.shape[1] // head_dim
    block_d = max(16, triton.next_power_of_2(head_dim))
    tile = tiles.prompt_tile(out.dtype, block_d, num_heads // num_kv_heads, out.device)
    block_q = tile.block_m // (num_heads // num_kv_heads)
    attend_prompts_kernel[num_rows // block_q + num_seqs, num_kv_heads](
        out,
        keys,
        values,
        sequence_rows,
        block_tables,
        out if sinks is None else sinks,
        num_seqs,
        block_tables.shape[1],
        window or _NO_WINDOW,
        factor,
        cap_factor,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        CAPS=cap_factor > 0,
        WINDOWED=window is not None,
        SINKS=sinks is not None,
        BLOCK_SEQS=triton.next_power_of_2(num_seqs),  # steps are filled up to a few numbers of sequences
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )

"""Attention over the paged cache on a GPU: decode rows and prompts in one grid, long contexts in splits."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.paged_attention import SPLIT_TOKENS, HeadNorms
from kernels.attention.triton_rotate_store import rotate_store
from kernels.attention.triton_sequences import SEQUENCE_COLUMNS, find_row, find_sequence

DECODE_TILE, PROMPT_TILE = 16, 64
"""Pairs of query and head in a tile: if every sequence has one row, and otherwise."""
BLOCK_N = 64
BLOCK_N_OF_WIDE_HEADS = 32
WIDE_HEAD = 256


@triton.jit(do_not_specialize=["num_seqs", "max_blocks", "num_splits", "window"])  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM]
    keys_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    values_ptr,  # the same
    sequence_rows_ptr,  # [num_seqs, 3] int32
    block_tables_ptr,  # [num_seqs, max_blocks] int32
    out_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM]; written if WHOLE
    parts_ptr,  # [num_rows, NUM_HEADS, num_splits, HEAD_DIM] float32, else
    sums_ptr,  # [num_rows, NUM_HEADS, num_splits, 2] float32: greatest score, sum of the weights
    num_seqs,
    max_blocks,
    num_splits,
    window,
    scale,
    softcap,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    CAPS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend from a tile of queries to one split of what they see; program (tile, kv head, split).

    The query heads that share a key head stand beside one another in a tile. Splits begin at multiples of
    SPLIT from the sequence's start, so that a row's sums do not depend on its neighbours.
    """
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    block_q: tl.constexpr = BLOCK_M // group
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq = find_sequence(sequence_rows_ptr, tile, num_seqs, block_q, BLOCK_SEQS)
    if seq < 0:
        return
    sequence_ptr = sequence_rows_ptr + seq * SEQUENCE_COLUMNS
    first_row = tl.load(sequence_ptr)
    num_mine = tl.load(sequence_ptr + 1)
    # A block_q of 1 still has a tile a row: `find_sequence` then takes tiles for rows.
    start = first_row if block_q == 1 else first_row // block_q + seq
    first_query = (tile - start) * block_q
    if first_query >= num_mine:
        return
    first_position = tl.load(sequence_ptr + 2)
    lowest = first_position + first_query
    end = tl.minimum(lowest + block_q, first_position + num_mine)  # behind the tile's last position
    begin = tl.maximum(split * SPLIT, tl.maximum(lowest - window + 1, 0) // BLOCK_N * BLOCK_N)
    stop = tl.minimum((split + 1) * SPLIT, end)
    if begin >= stop:
        return

    pairs = tl.arange(0, BLOCK_M)
    queries = first_query + pairs // group
    pair_exists = (pairs < block_q * group) & (queries < num_mine)
    positions = first_position + queries
    heads = kv_head * group + pairs % group
    columns = tl.arange(0, BLOCK_D)
    column_exists = columns < HEAD_DIM
    places = (first_row + queries).to(tl.int64) * NUM_HEADS + heads
    mine = pair_exists[:, None] & column_exists[None, :]
    q = tl.load(queries_ptr + places[:, None] * HEAD_DIM + columns[None, :], mask=mine, other=0.0)

    greatest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    table_ptr = block_tables_ptr + seq.to(tl.int64) * max_blocks
    for first in range(begin, stop, BLOCK_N):
        tokens = first + tl.arange(0, BLOCK_N)
        # What no row of the tile sees is not read: its values, times a weight of 0, could be NaN.
        token_exists = (tokens < stop) & (tokens > lowest - window)
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=token_exists, other=0).to(tl.int64)
        rows = ((blocks * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM
        k = tl.load(
            keys_ptr + rows[None, :] + columns[:, None],
            mask=token_exists[None, :] & column_exists[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if CAPS:
            # softcap tanh(x): by an exponential of what is not positive, which cannot overflow.
            small = tl.exp(-2.0 * tl.abs(scores) / softcap)
            scores = softcap * tl.where(scores < 0, small - 1.0, 1.0 - small) / (1.0 + small)
        distances = positions[:, None] - tokens[None, :]
        is_seen = (distances >= 0) & (distances < window) & token_exists[None, :]
        scores = tl.where(is_seen, scores, float("-inf"))
        new_greatest = tl.maximum(greatest, tl.max(scores, axis=1))
        # A row that has seen nothing yet has -inf, which must not be subtracted from itself.
        base = tl.where(new_greatest == float("-inf"), 0.0, new_greatest)
        weights = tl.exp(scores - base[:, None])
        kept = tl.exp(greatest - base)
        total = total * kept + tl.sum(weights, axis=1)
        v = tl.load(
            values_ptr + rows[:, None] + columns[None, :],
            mask=token_exists[:, None] & column_exists[None, :],
            other=0.0,
        )
        acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
        greatest = new_greatest

    if WHOLE:
        # Only pairs that are nobody's see nothing.
        out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out_ptr + places[:, None] * HEAD_DIM + columns[None, :], out, mask=mine)
    else:
        parts = places * num_splits + split
        tl.store(parts_ptr + parts[:, None] * HEAD_DIM + columns[None, :], acc, mask=mine)
        tl.store(sums_ptr + parts * 2, greatest, mask=pair_exists)
        tl.store(sums_ptr + parts * 2 + 1, total, mask=pair_exists)


@triton.jit(do_not_specialize=["num_seqs", "num_splits", "window"])  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    parts_ptr,  # [num_rows, NUM_HEADS, num_splits, HEAD_DIM] float32
    sums_ptr,  # [num_rows, NUM_HEADS, num_splits, 2] float32
    sequence_rows_ptr,  # [num_seqs, 3] int32
    out_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM]
    num_seqs,
    num_splits,
    window,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add up the splits that one head of one row sees, in their order; program (row, head)."""
    row = tl.program_id(0)
    _, position = find_row(sequence_rows_ptr, row, num_seqs, BLOCK_SEQS)
    if position < 0:
        return

    columns = tl.arange(0, BLOCK_D)
    exists = columns < HEAD_DIM
    place = row.to(tl.int64) * NUM_HEADS + tl.program_id(1)
    greatest = float("-inf")
    total = 0.0
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for split in range(tl.maximum(position - window + 1, 0) // SPLIT, position // SPLIT + 1):
        part = place * num_splits + split
        new_greatest = tl.maximum(greatest, tl.load(sums_ptr + part * 2))
        kept = tl.exp(greatest - new_greatest)
        added = tl.exp(tl.load(sums_ptr + part * 2) - new_greatest)
        total = total * kept + tl.load(sums_ptr + part * 2 + 1) * added
        acc = acc * kept + tl.load(parts_ptr + part * HEAD_DIM + columns, mask=exists, other=0.0) * added
        greatest = new_greatest
    tl.store(out_ptr + place * HEAD_DIM + columns, acc / total, mask=exists)


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
) -> Tensor:
    """Compute `PagedAttention`: three launches, two if no sequence can be longer than a split."""
    queries = rotate_store(qkv, keys, values, cos, sin, sequence_rows, block_tables, head_norms)
    return _attend(queries, keys, values, sequence_rows, block_tables, scale, window or 2**30, softcap)


def _attend(
    queries: Tensor,  # [num_rows, num_heads * head_dim], rotated
    keys: Tensor,
    values: Tensor,
    sequence_rows: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int,
    softcap: float | None,
) -> Tensor:  # like queries
    _, num_kv_heads, block_size, head_dim = keys.shape
    out = torch.zeros_like(queries)  # rows in no sequence are 0
    num_rows, num_seqs = out.shape[0], sequence_rows.shape[0]
    num_heads = out.shape[1] // head_dim
    group = num_heads // num_kv_heads
    block_m = max(DECODE_TILE if num_rows <= num_seqs else PROMPT_TILE, triton.next_power_of_2(group))
    block_q = block_m // group
    num_splits = triton.cdiv(block_tables.shape[1] * block_size, SPLIT_TOKENS)
    is_whole = num_splits == 1
    parts = sums = out
    if not is_whole:
        parts, sums = (
            torch.empty((num_rows, num_heads, num_splits, width), dtype=torch.float32, device=out.device)
            for width in (head_dim, 2)
        )
    block_d = triton.next_power_of_2(head_dim)
    block_seqs = triton.next_power_of_2(num_seqs)
    attend_kernel[num_rows // block_q + num_seqs, num_kv_heads, num_splits](
        queries,
        keys,
        values,
        sequence_rows,
        block_tables,
        out,
        parts,
        sums,
        num_seqs,
        block_tables.shape[1],
        num_splits,
        window,
        scale,
        softcap or math.inf,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        SPLIT=SPLIT_TOKENS,
        WHOLE=is_whole,
        CAPS=softcap is not None,
        BLOCK_SEQS=block_seqs,
        BLOCK_M=block_m,
        BLOCK_N=BLOCK_N if block_d < WIDE_HEAD else BLOCK_N_OF_WIDE_HEADS,
        BLOCK_D=max(16, block_d),
        num_warps=8 if block_m * block_d > DECODE_TILE * WIDE_HEAD else 4,
    )
    if not is_whole:
        merge_kernel[num_rows, num_heads](
            parts,
            sums,
            sequence_rows,
            out,
            num_seqs,
            num_splits,
            window,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            SPLIT=SPLIT_TOKENS,
            BLOCK_SEQS=block_seqs,
            BLOCK_D=block_d,
            num_warps=1,
        )
    return out

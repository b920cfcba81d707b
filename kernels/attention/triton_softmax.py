"""Softmax over tokens of the paged cache in one pass, as every attention kernel on a GPU adds it up."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sink_weights(sinks_ptr, heads, exists, greatest):  # type: ignore[no-untyped-def]
    """Return the weights of some heads' sinks, relative to `greatest` as `add_tokens` has it."""
    sinks = tl.load(sinks_ptr + heads, mask=exists, other=0.0)
    exponents = sinks * 1.4426950408889634 - greatest
    # Beside 2^126 nothing else counts, and it is finite; the comparison lets NaN through.
    return tl.exp2(tl.where(exponents > 126.0, 126.0, exponents))


@triton.jit  # type: ignore[untyped-decorator]
def add_tokens(  # type: ignore[no-untyped-def]
    q,  # [BLOCK_M, BLOCK_D]
    greatest,  # [BLOCK_M] float32: so far the greatest score, times log2(e); -inf if nothing was seen
    total,  # [BLOCK_M] float32: of the weights, relative to `greatest`
    acc,  # [BLOCK_M, BLOCK_D] float32: of weights times values
    keys_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    values_ptr,  # the same
    table_ptr,  # [max_blocks] int32, of the sequence
    kv_head,
    positions,  # [BLOCK_M] of the queries
    begin,  # a multiple of BLOCK_N
    stop,
    first_token,  # that any query sees
    window,
    factor,
    cap_factor,
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return greatest, total and acc with tokens begin..stop added, BLOCK_N at a time.

    Weights are powers of two: exp(x) = 2^(x log2(e)). Without MASKED every query sees all the tokens, stop is
    a multiple of BLOCK_N as well, and the arithmetic is the same. With CAPS, scores are softcap tanh(x).
    """
    block_width: tl.constexpr = NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    columns = tl.arange(0, BLOCK_D)
    column_exists = columns < HEAD_DIM
    keys_ptr += kv_head * (BLOCK_SIZE * HEAD_DIM)
    values_ptr += kv_head * (BLOCK_SIZE * HEAD_DIM)
    for first in range(begin, stop, BLOCK_N):
        tokens = first + tl.arange(0, BLOCK_N)
        # What no row of the tile sees is not read: its values, times a weight of 0, could be NaN.
        token_exists = (tokens >= first_token) & (tokens < stop)
        if MASKED:
            blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=token_exists, other=0)
        else:
            blocks = tl.load(table_ptr + tokens // BLOCK_SIZE)
        rows = blocks.to(tl.int64) * block_width + tokens % BLOCK_SIZE * HEAD_DIM
        places = rows[:, None] + columns[None, :]
        if MASKED:
            exists = token_exists[:, None] & column_exists[None, :]
            k = tl.load(keys_ptr + places, mask=exists, other=0.0)
            v = tl.load(values_ptr + places, mask=exists, other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(keys_ptr + places)
            v = tl.load(values_ptr + places)
        else:
            k = tl.load(keys_ptr + places, mask=column_exists[None, :], other=0.0)
            v = tl.load(values_ptr + places, mask=column_exists[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if CAPS:
            # tanh by an exponential of what is not positive, which cannot overflow.
            small = tl.exp2(-tl.abs(scores) * cap_factor)
            scores = tl.where(scores < 0, small - 1.0, 1.0 - small) / (1.0 + small)
        if MASKED:
            is_seen = (positions[:, None] >= tokens[None, :]) & token_exists[None, :]
            if WINDOWED:
                is_seen = is_seen & (positions[:, None] - tokens[None, :] < window)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_greatest = tl.maximum(greatest, tl.max(scores, axis=1) * factor)
        # A row that has seen nothing yet, or NaN alone, has -inf, which must not be subtracted from itself.
        base = tl.where(new_greatest == float("-inf"), 0.0, new_greatest)
        weights = tl.exp2(scores * factor - base[:, None])
        kept = tl.exp2(greatest - base)
        total = total * kept + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
        greatest = new_greatest
    return greatest, total, acc

"""Attention of single rows on a GPU: what a row sees is cut into splits, which many programs share."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_sequences import SEQUENCE_COLUMNS
from kernels.attention.triton_softmax import add_tokens, sink_weights
from kernels.attention.triton_tiles import LEAST_SPLIT, MOST_SPLITS, SPLIT_GRAIN
from kernels.dependent_launch import wait_for_inputs


@triton.jit
def split_of(position, window):  # type: ignore[no-untyped-def]
    """Return where a row's first split begins, the tokens of a split and the number of splits.

    They follow from what the row sees alone: its sums depend on nothing else in the step.
    """
    begin = tl.maximum(position - window + 1, 0) // SPLIT_GRAIN * SPLIT_GRAIN
    num_tokens = position + 1 - begin
    share = tl.cdiv(tl.cdiv(num_tokens, MOST_SPLITS), SPLIT_GRAIN) * SPLIT_GRAIN
    tokens = tl.maximum(share, LEAST_SPLIT)
    return begin, tokens, tl.cdiv(num_tokens, tokens)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["max_blocks", "num_splits", "window", "is_mixed"]
)
def attend_splits_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM], replaced by the result if WHOLE
    keys_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    values_ptr,  # the same
    sequence_rows_ptr,  # [num_seqs, 3] int32
    block_tables_ptr,  # [num_seqs, max_blocks] int32
    sinks_ptr,  # [NUM_HEADS] float32, read if SINKS
    parts_ptr,  # [num_seqs, NUM_HEADS, num_splits, HEAD_DIM] float32, written unless WHOLE
    sums_ptr,  # [num_seqs, NUM_HEADS, num_splits, 2] float32: greatest score, sum of the weights
    max_blocks,
    num_splits,  # at least as many as any row has
    window,
    is_mixed,
    factor,
    cap_factor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
    CAPS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from a row to some of its splits; program (sequence, kv head, first split).

    In a mixed step sequences of several rows are left to `attend_prompts_kernel`, and a sequence's partial
    sums lie at its own number; otherwise there are no more rows than sequences, and they lie at the row's.
    """
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence_ptr = sequence_rows_ptr + seq * SEQUENCE_COLUMNS
    first_row = tl.load(sequence_ptr)
    num_mine = tl.load(sequence_ptr + 1)
    first_position = tl.load(sequence_ptr + 2)
    wait_for_inputs(PDL)
    if (num_mine > 1) & (is_mixed != 0):
        return

    pairs = tl.arange(0, BLOCK_M)
    pair_exists = pairs < group
    columns = tl.arange(0, BLOCK_D)
    mine = pair_exists[:, None] & (columns < HEAD_DIM)[None, :]
    heads = kv_head * group + pairs
    table_ptr = block_tables_ptr + seq.to(tl.int64) * max_blocks
    for query in range(num_mine):
        row = first_row + query
        position = first_position + query
        places = row.to(tl.int64) * NUM_HEADS + heads
        q = tl.load(queries_ptr + places[:, None] * HEAD_DIM + columns[None, :], mask=mine, other=0.0)
        positions = tl.zeros((BLOCK_M,), tl.int32) + position
        begin, tokens, used = split_of(position, window)
        for split in range(tl.program_id(2), used, tl.num_programs(2)):
            split_begin = begin + split * tokens
            greatest, total, acc = add_tokens(
                q,
                tl.full((BLOCK_M,), float("-inf"), tl.float32),
                tl.zeros((BLOCK_M,), tl.float32),
                tl.zeros((BLOCK_M, BLOCK_D), tl.float32),
                keys_ptr,
                values_ptr,
                table_ptr,
                kv_head,
                positions,
                split_begin,
                tl.minimum(split_begin + tokens, position + 1),
                position - window + 1,
                window,
                factor,
                cap_factor,
                HEAD_DIM,
                NUM_KV_HEADS,
                BLOCK_SIZE,
                CAPS,
                True,
                WINDOWED,
                BLOCK_N,
                BLOCK_D,
            )
            if WHOLE:
                if SINKS:
                    total += sink_weights(sinks_ptr, heads, pair_exists, greatest)
                out = acc / total[:, None]
                tl.store(queries_ptr + places[:, None] * HEAD_DIM + columns[None, :], out, mask=mine)
            else:
                plane = tl.where(is_mixed != 0, seq, row).to(tl.int64)
                parts = (plane * NUM_HEADS + heads) * num_splits + split
                tl.store(parts_ptr + parts[:, None] * HEAD_DIM + columns[None, :], acc, mask=mine)
                tl.store(sums_ptr + parts * 2, greatest, mask=pair_exists)
                tl.store(sums_ptr + parts * 2 + 1, total, mask=pair_exists)


@triton.jit(do_not_specialize=["num_splits", "window", "is_mixed"])  # type: ignore[untyped-decorator]
def merge_splits_kernel(  # type: ignore[no-untyped-def]
    parts_ptr,  # [num_seqs, NUM_HEADS, num_splits, HEAD_DIM] float32
    sums_ptr,  # [num_seqs, NUM_HEADS, num_splits, 2] float32
    sequence_rows_ptr,  # [num_seqs, 3] int32
    sinks_ptr,  # [NUM_HEADS] float32, read if SINKS
    out_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM]
    num_splits,
    window,
    is_mixed,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add up the splits of one head of the rows of `attend_splits_kernel`; program (sequence, head)."""
    seq = tl.program_id(0)
    head = tl.program_id(1)
    sequence_ptr = sequence_rows_ptr + seq * SEQUENCE_COLUMNS
    first_row = tl.load(sequence_ptr)
    num_mine = tl.load(sequence_ptr + 1)
    first_position = tl.load(sequence_ptr + 2)
    wait_for_inputs(PDL)
    if (num_mine > 1) & (is_mixed != 0):
        return

    columns = tl.arange(0, BLOCK_D)
    column_exists = columns < HEAD_DIM
    splits = tl.arange(0, MOST_SPLITS)
    for query in range(num_mine):
        row = first_row + query
        _, _, used = split_of(first_position + query, window)
        exists = splits < used
        plane = tl.where(is_mixed != 0, seq, row).to(tl.int64)
        parts = (plane * NUM_HEADS + head) * num_splits + splits
        added = tl.load(
            parts_ptr + parts[:, None] * HEAD_DIM + columns[None, :],
            mask=exists[:, None] & column_exists[None, :],
            other=0.0,
        )
        greatest = tl.load(sums_ptr + parts * 2, mask=exists, other=float("-inf"))
        totals = tl.load(sums_ptr + parts * 2 + 1, mask=exists, other=0.0)
        greatest_of_all = tl.max(greatest, axis=0)
        weights = tl.exp2(greatest - greatest_of_all)
        out = tl.sum(added * weights[:, None], axis=0)
        total = tl.sum(totals * weights, axis=0)
        if SINKS:  # once, whatever the number of splits
            total += sink_weights(sinks_ptr, head, True, greatest_of_all)
        out /= total
        place = row.to(tl.int64) * NUM_HEADS + head
        tl.store(out_ptr + place * HEAD_DIM + columns, out, mask=column_exists)

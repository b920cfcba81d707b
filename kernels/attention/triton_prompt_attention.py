"""Attention of prompts and chunks of them on a GPU: one pass over what they see, no partial sums."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_sequences import SEQUENCE_COLUMNS, find_sequence
from kernels.attention.triton_softmax import add_tokens, sink_weights


@triton.jit(do_not_specialize=["num_seqs", "max_blocks", "window"])  # type: ignore[untyped-decorator]
def attend_prompts_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM], replaced by the result
    keys_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    values_ptr,  # the same
    sequence_rows_ptr,  # [num_seqs, 3] int32
    block_tables_ptr,  # [num_seqs, max_blocks] int32
    sinks_ptr,  # [NUM_HEADS] float32, read if SINKS
    num_seqs,
    max_blocks,
    window,
    factor,
    cap_factor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend from a tile of queries to all that they see; program (tile, kv head), the last tile first.

    Sequences of one row are left to `attend_splits_kernel`. The query heads that share a key head stand
    beside one another in a tile. Tokens are added BLOCK_N at a time from the sequence's start, and adding
    what a row does not see changes none of its bits: its sums depend neither on its neighbours nor on how
    its prompt was cut.
    """
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    block_q: tl.constexpr = BLOCK_M // group
    # The last tiles of a prompt see most: they begin first, so that none is left over at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    seq = find_sequence(sequence_rows_ptr, tile, num_seqs, block_q, BLOCK_SEQS)
    if seq < 0:
        return
    sequence_ptr = sequence_rows_ptr + seq * SEQUENCE_COLUMNS
    first_row = tl.load(sequence_ptr)
    num_mine = tl.load(sequence_ptr + 1)
    # A block_q of 1 still has a tile a row: `find_sequence` then takes tiles for rows.
    start = first_row if block_q == 1 else first_row // block_q + seq
    first_query = (tile - start) * block_q
    if (first_query >= num_mine) | (num_mine == 1):
        return
    first_position = tl.load(sequence_ptr + 2)
    lowest = first_position + first_query
    end = tl.minimum(lowest + block_q, first_position + num_mine)  # behind the tile's last position

    pairs = tl.arange(0, BLOCK_M)
    queries = first_query + pairs // group
    pair_exists = (pairs < block_q * group) & (queries < num_mine)
    columns = tl.arange(0, BLOCK_D)
    mine = pair_exists[:, None] & (columns < HEAD_DIM)[None, :]
    places = (first_row + queries).to(tl.int64) * NUM_HEADS + kv_head * group + pairs % group
    q = tl.load(queries_ptr + places[:, None] * HEAD_DIM + columns[None, :], mask=mine, other=0.0)

    greatest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    positions = first_position + queries
    table_ptr = block_tables_ptr + seq.to(tl.int64) * max_blocks
    # Tokens full_begin..full_end are seen by all rows of the tile.
    first_token = tl.maximum(lowest - window + 1, 0)
    full_begin = 0
    full_end = (lowest + 1) // BLOCK_N * BLOCK_N
    if WINDOWED:
        begin = first_token // BLOCK_N * BLOCK_N
        full_begin = tl.maximum((tl.maximum(end - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N, begin)
        greatest, total, acc = add_tokens(
            q,
            greatest,
            total,
            acc,
            keys_ptr,
            values_ptr,
            table_ptr,
            kv_head,
            positions,
            begin,
            tl.minimum(full_begin, end),
            first_token,
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
    greatest, total, acc = add_tokens(
        q,
        greatest,
        total,
        acc,
        keys_ptr,
        values_ptr,
        table_ptr,
        kv_head,
        positions,
        full_begin,
        full_end,
        first_token,
        window,
        factor,
        cap_factor,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        CAPS,
        False,
        WINDOWED,
        BLOCK_N,
        BLOCK_D,
    )
    greatest, total, acc = add_tokens(
        q,
        greatest,
        total,
        acc,
        keys_ptr,
        values_ptr,
        table_ptr,
        kv_head,
        positions,
        tl.maximum(full_begin, full_end),
        end,
        first_token,
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
    if SINKS:
        total += sink_weights(sinks_ptr, kv_head * group + pairs % group, pair_exists, greatest)
    # Only pairs that are nobody's see nothing.
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(queries_ptr + places[:, None] * HEAD_DIM + columns[None, :], out, mask=mine)

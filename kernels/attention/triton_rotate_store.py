"""Before attention on a GPU: queries and keys are normed and rotated, keys and values go into the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from kernels.attention.triton_sequences import find_row


@triton.jit(do_not_specialize=["num_seqs", "max_blocks"])  # type: ignore[untyped-decorator]
def rotate_store_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,  # [num_rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]
    queries_ptr,  # [num_rows, NUM_HEADS * HEAD_DIM], written
    keys_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], written
    values_ptr,  # the same
    cos_ptr,  # [num_rows, ROTARY_DIM]
    sin_ptr,  # [num_rows, ROTARY_DIM], the first half negated
    q_norm_ptr,  # [HEAD_DIM] float32; not read unless NORMS
    k_norm_ptr,  # [HEAD_DIM] float32; not read unless NORMS
    sequence_rows_ptr,  # [num_seqs, 3] int32
    block_tables_ptr,  # [num_seqs, max_blocks] int32
    num_seqs,
    max_blocks,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Bring one head of one row to its place; program (row, head): heads of queries, keys, values."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    seq, position = find_row(sequence_rows_ptr, row, num_seqs, BLOCK_SEQS)
    if position < 0:
        return

    columns = tl.arange(0, BLOCK_D)
    exists = columns < HEAD_DIM
    width: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    head_ptr = qkv_ptr + row.to(tl.int64) * width + head * HEAD_DIM
    x = tl.load(head_ptr + columns, mask=exists, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        half: tl.constexpr = ROTARY_DIM // 2
        partners = tl.where(columns < half, columns + half, columns - half)
        turns = columns < ROTARY_DIM
        partner = tl.load(head_ptr + partners, mask=turns, other=0.0)
        wide, wide_partner = x.to(tl.float32), partner.to(tl.float32)
        if NORMS:
            inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / HEAD_DIM + eps)
            norm_ptr = q_norm_ptr
            if head >= NUM_HEADS:
                norm_ptr = k_norm_ptr
            weight = tl.load(norm_ptr + columns, mask=exists, other=0.0)
            partner_weight = tl.load(norm_ptr + partners, mask=turns, other=0.0)
            wide = (wide * inverse * weight).to(x.dtype).to(tl.float32)
            wide_partner = (wide_partner * inverse * partner_weight).to(x.dtype).to(tl.float32)
        at = row.to(tl.int64) * ROTARY_DIM + columns
        cos = tl.load(cos_ptr + at, mask=turns, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + at, mask=turns, other=0.0).to(tl.float32)
        x = (wide * cos + wide_partner * sin).to(x.dtype)

    if head < NUM_HEADS:
        target = queries_ptr + row.to(tl.int64) * NUM_HEADS * HEAD_DIM + head * HEAD_DIM
    else:
        table_ptr = block_tables_ptr + seq.to(tl.int64) * max_blocks
        block = tl.load(table_ptr + position // BLOCK_SIZE).to(tl.int64)
        kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
        place = ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE) * HEAD_DIM
        target = keys_ptr + place
        if head >= NUM_HEADS + NUM_KV_HEADS:
            target = values_ptr + place
    tl.store(target + columns, x, mask=exists)


def rotate_store(
    qkv: Tensor,  # [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]
    keys: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim], changed
    values: Tensor,  # the same
    cos: Tensor,  # [num_rows, rotary_dim]
    sin: Tensor,  # [num_rows, rotary_dim], the first half negated
    sequence_rows: Tensor,  # [num_seqs, 3] int32
    block_tables: Tensor,  # [num_seqs, max_blocks] int32
    head_norms: HeadNorms | None,
) -> Tensor:  # [num_rows, num_heads * head_dim]; rows in no sequence stay unwritten
    """Store this step's keys and values; return its queries, rotated."""
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_rows, num_heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * num_kv_heads
    # Not in place: no thread may read a column's partner after another has turned it.
    queries = torch.empty((num_rows, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    norms = head_norms or HeadNorms(sin, sin, 0.0)  # which are not read
    rotate_store_kernel[num_rows, num_heads + 2 * num_kv_heads](
        qkv,
        queries,
        keys,
        values,
        cos,
        sin,
        norms.q,
        norms.k,
        sequence_rows,
        block_tables,
        sequence_rows.shape[0],
        block_tables.shape[1],
        norms.eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=cos.shape[1],
        BLOCK_SIZE=block_size,
        NORMS=head_norms is not None,
        BLOCK_SEQS=triton.next_power_of_2(sequence_rows.shape[0]),
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=1,
    )
    return queries

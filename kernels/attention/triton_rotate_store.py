"""Before attention on a GPU: queries and keys are normed and rotated, keys and values go into the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from kernels.attention.triton_sequences import find_row
from kernels.dependent_launch import dependent_launch, wait_for_inputs

_HEADS = 16
"""Heads of a program: two loads of 16 bytes a thread for heads of 128 in 16 bits."""


@triton.jit
def _norm_weight(q_norm_ptr, k_norm_ptr, is_query, columns, exists):  # type: ignore[no-untyped-def]
    """Return [BLOCK_HEADS, BLOCK_D] of one norm or the other."""
    q_weight = tl.load(q_norm_ptr + columns, mask=exists & is_query, other=0.0)
    k_weight = tl.load(k_norm_ptr + columns, mask=exists & ~is_query, other=0.0)
    return tl.where(is_query, q_weight, k_weight)


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
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Bring some heads of one row to their places; program (row, tile of heads): of queries, keys, values.

    The queries of a row in no sequence become 0, and its keys and values go nowhere.
    """
    row = tl.program_id(0)
    seq, position = find_row(sequence_rows_ptr, row, num_seqs, BLOCK_SEQS)
    in_sequence = position >= 0
    table_ptr = block_tables_ptr + tl.maximum(seq, 0).to(tl.int64) * max_blocks
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=in_sequence, other=0).to(tl.int64)
    place = (block * (NUM_KV_HEADS * BLOCK_SIZE) + position % BLOCK_SIZE) * HEAD_DIM

    num_rotated: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    num_all: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    # Whatever is loaded is [BLOCK_HEADS, BLOCK_D], the row's rotation too: no thread asks another.
    heads = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    columns = tl.arange(0, BLOCK_D)[None, :] + heads * 0
    exists = (heads < num_all) & (columns < HEAD_DIM)
    row_ptr = qkv_ptr + row.to(tl.int64) * (num_all * HEAD_DIM) + heads * HEAD_DIM
    half: tl.constexpr = ROTARY_DIM // 2
    partners = tl.where(columns < half, columns + half, columns - half)
    turns = (heads < num_rotated) & (columns < ROTARY_DIM)
    weight, partner_weight = 1.0, 1.0
    if NORMS:
        is_query = heads < NUM_HEADS
        weight = _norm_weight(q_norm_ptr, k_norm_ptr, is_query, columns, exists)
        partner_weight = _norm_weight(q_norm_ptr, k_norm_ptr, is_query, partners, turns)

    wait_for_inputs(PDL)
    x = tl.load(row_ptr + columns, mask=exists, other=0.0)
    partner = tl.load(row_ptr + partners, mask=turns, other=0.0)
    wide, wide_partner = x.to(tl.float32), partner.to(tl.float32)
    if NORMS:
        inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        wide = (wide * inverse * weight).to(x.dtype).to(tl.float32)
        wide_partner = (wide_partner * inverse * partner_weight).to(x.dtype).to(tl.float32)
    at = row.to(tl.int64) * ROTARY_DIM + columns
    cos = tl.load(cos_ptr + at, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=turns, other=0.0).to(tl.float32)
    x = tl.where(heads < num_rotated, (wide * cos + wide_partner * sin).to(x.dtype), x)

    query_ptr = queries_ptr + row.to(tl.int64) * (NUM_HEADS * HEAD_DIM) + heads * HEAD_DIM
    tl.store(query_ptr + columns, tl.where(in_sequence, x, 0.0), mask=exists & (heads < NUM_HEADS))
    kv_places = place + (heads - NUM_HEADS) % NUM_KV_HEADS * (BLOCK_SIZE * HEAD_DIM) + columns
    is_key = (heads >= NUM_HEADS) & (heads < num_rotated) & in_sequence
    tl.store(keys_ptr + kv_places, x, mask=exists & is_key)
    is_value = (heads >= num_rotated) & in_sequence
    tl.store(values_ptr + kv_places, x, mask=exists & is_value)


def rotate_store(
    qkv: Tensor,  # [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]
    keys: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim], changed
    values: Tensor,  # the same
    cos: Tensor,  # [num_rows, rotary_dim]
    sin: Tensor,  # [num_rows, rotary_dim], the first half negated
    sequence_rows: Tensor,  # [num_seqs, 3] int32
    block_tables: Tensor,  # [num_seqs, max_blocks] int32
    head_norms: HeadNorms | None,
) -> Tensor:  # [num_rows, num_heads * head_dim]; rows in no sequence are 0
    """Store this step's keys and values; return its queries, rotated."""
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_rows, num_heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * num_kv_heads
    # Not in place: no thread may read a column's partner after another has turned it.
    queries = torch.empty((num_rows, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    norms = head_norms or HeadNorms(sin, sin, 0.0)  # which are not read
    rotate_store_kernel[num_rows, triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS)](
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
        # A constant to the compiler: steps are filled up to a few numbers of sequences.
        BLOCK_SEQS=triton.next_power_of_2(sequence_rows.shape[0]),
        BLOCK_HEADS=_HEADS,
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=4,
        **dependent_launch(qkv.device),
    )
    return queries

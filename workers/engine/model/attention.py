"""Grouped-query attention over the paged cache where no kernel reads it in place: blocks are gathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.engine.step_input import AttentionGroup


def store_kv(
    new: Tensor,  # [num_tokens, num_kv_heads, head_dim]
    cache: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    write_rows: Tensor,  # [num_tokens * num_kv_heads] int64
) -> None:
    """Write keys or values of this step's tokens to their places in the cache."""
    head_dim = cache.shape[-1]
    cache.view(-1, head_dim).index_copy_(0, write_rows, new.reshape(-1, head_dim))


def gathered_attention(
    queries: Tensor,  # [num_tokens, num_heads, head_dim]
    keys: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    values: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    groups: Sequence[AttentionGroup],
) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v, [num_tokens, num_heads * head_dim], 0 for padding rows."""
    num_tokens, num_heads, head_dim = queries.shape
    # One row more than tokens: the place where padded queries put their results.
    out = queries.new_zeros((num_tokens + 1, num_heads * head_dim))
    for group in groups:
        attend = _attend_one_query if group.query_len == 1 else _attend_many_queries
        out.index_copy_(0, group.output_rows, attend(queries, keys, values, group))
    return out[:num_tokens]


def _attend_one_query(queries: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup) -> Tensor:
    # Query heads that share a key head stand where query positions would: nothing is repeated.
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    q = queries.index_select(0, group.query_rows).view(group.num_seqs, num_kv_heads, -1, head_dim)
    k, v = _gather(keys, group), _gather(values, group)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
    return out.reshape(group.num_seqs, -1)


def _attend_many_queries(queries: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup) -> Tensor:
    num_heads, head_dim = queries.shape[1], queries.shape[2]
    q = queries.index_select(0, group.query_rows).view(group.num_seqs, group.query_len, num_heads, head_dim)
    heads_per_kv_head = num_heads // keys.shape[1]
    k = _gather(keys, group).repeat_interleave(heads_per_kv_head, dim=1)
    v = _gather(values, group).repeat_interleave(heads_per_kv_head, dim=1)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=group.mask)
    return out.transpose(1, 2).reshape(group.num_seqs * group.query_len, -1)


def _gather(cache: Tensor, group: AttentionGroup) -> Tensor:
    """Return the group's blocks in order, [num_seqs, num_kv_heads, num_blocks * block_size, head_dim]."""
    num_kv_heads, block_size, head_dim = cache.shape[1:]
    rows = torch.index_select(cache.view(-1, block_size, head_dim), 0, group.kv_rows)
    return rows.view(group.num_seqs, num_kv_heads, -1, head_dim)

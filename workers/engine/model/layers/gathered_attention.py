"""Grouped-query attention over the paged cache if no kernel reads it in place: blocks are gathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.engine.core.step_input import AttentionGroup


def store_kv(
    new: Tensor,  # [num_tokens, num_kv_heads, head_dim]
    cache: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    kv_write_rows: Tensor,  # [num_tokens * num_kv_heads] int64
) -> None:
    """Write keys or values of this step's tokens to their places in the cache."""
    head_dim = cache.shape[-1]
    cache.view(-1, head_dim).index_copy_(0, kv_write_rows, new.reshape(-1, head_dim))


def gathered_attention(
    queries: Tensor,  # [num_tokens, num_heads, head_dim]
    keys: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    values: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    groups: Sequence[AttentionGroup],
    *,
    mask: int,  # which of the groups' masks
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,  # [num_heads] float32, in the denominators
) -> Tensor:
    """Return softmax(scale q k^T) v, [num_tokens, num_heads * head_dim], 0 for padding rows."""
    num_tokens, num_heads, head_dim = queries.shape
    # One row more than tokens: the place where padded queries put their results.
    out = queries.new_zeros((num_tokens + 1, num_heads * head_dim))
    for group in groups:
        lay_out = _lay_out_one_query if group.query_len == 1 else _lay_out_many_queries
        q, k, v = lay_out(queries, keys, values, group)
        attended = _attend(q, k, v, group.masks[mask], scale, softcap, sinks)
        if group.query_len > 1:
            attended = attended.transpose(1, 2)
        out.index_copy_(0, group.output_rows, attended.reshape(group.num_seqs * group.query_len, -1))
    return out[:num_tokens]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # like q
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    if sinks is not None:
        # Heads stand along the second dimension, or those that share a key head along the third.
        column = sinks.view(1, q.shape[1], -1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype) @ v


def _lay_out_one_query(
    queries: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup
) -> tuple[Tensor, Tensor, Tensor]:
    # Query heads that share a key head stand where query positions would: nothing is repeated.
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    q = queries.index_select(0, group.query_rows).view(group.num_seqs, num_kv_heads, -1, head_dim)
    return q, _gather(keys, group), _gather(values, group)


def _lay_out_many_queries(
    queries: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup
) -> tuple[Tensor, Tensor, Tensor]:
    num_heads, head_dim = queries.shape[1], queries.shape[2]
    q = queries.index_select(0, group.query_rows).view(group.num_seqs, group.query_len, num_heads, head_dim)
    heads_per_kv_head = num_heads // keys.shape[1]
    k = _gather(keys, group).repeat_interleave(heads_per_kv_head, dim=1)
    v = _gather(values, group).repeat_interleave(heads_per_kv_head, dim=1)
    return q.transpose(1, 2), k, v


def _gather(cache: Tensor, group: AttentionGroup) -> Tensor:
    """Return the group's blocks in order, [num_seqs, num_kv_heads, num_blocks * block_size, head_dim]."""
    num_kv_heads, block_size, head_dim = cache.shape[1:]
    rows = torch.index_select(cache.view(-1, block_size, head_dim), 0, group.kv_rows)
    return rows.view(group.num_seqs, num_kv_heads, -1, head_dim)

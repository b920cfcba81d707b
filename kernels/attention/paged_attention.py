"""Rotate queries and keys, keep keys and values in the paged cache, attend to all that the cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library

BLOCK_MULTIPLE = 16
SPLIT_TOKENS = 512


def reads_blocks_of(block_size: int) -> bool:
    """Whether kernels read a cache with blocks of that many tokens in place."""
    return block_size % BLOCK_MULTIPLE == 0 and SPLIT_TOKENS % block_size == 0


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of every query and key head before it is rotated."""

    q: Tensor  # [head_dim] float32
    k: Tensor  # [head_dim] float32
    eps: float


class PagedAttention(Protocol):
    """Called as `paged_attention_reference`."""

    def __call__(
        self,
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
        """Attend."""
        ...


def check_sinks(sinks: Tensor, num_heads: int) -> None:
    """Refuse sinks that no kernel reads: ValueError with what they are."""
    if tuple(sinks.shape) != (num_heads,) or sinks.dtype is not torch.float32 or not sinks.is_contiguous():
        raise ValueError(
            f"sinks are {sinks.dtype} {tuple(sinks.shape)}; give contiguous float32 ({num_heads},), one for "
            "each query head"
        )


def paged_attention_compiled(level: library.Level) -> PagedAttention:
    """Return the CPU's compiled kernel.

    Sums are cut at blocks and at multiples of 512 tokens from the sequence's start: a row's result depends
    on what it sees, not on how its sequence was cut into steps, its neighbours or the cores.
    """
    operator = library.operator("paged_attention", level)

    def paged_attention(
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
        options = window or 0, softcap or 0.0
        norms = (None, None, 0.0) if head_norms is None else (head_norms.q, head_norms.k, head_norms.eps)
        tensors = qkv, keys, values, cos, sin, sequence_rows, block_tables
        return operator(*tensors, scale, *options, *norms, sinks)

    return paged_attention


def paged_attention_meta(
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
    """Return what attention would, for tensors without contents."""
    del values, cos, sin, sequence_rows, block_tables, scale, window, softcap, head_norms, sinks
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] - 2 * num_kv_heads * head_dim))


def paged_attention_reference(
    qkv: Tensor,  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; kernels rotate the queries in it
    keys: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim], new rows are stored
    values: Tensor,  # the same
    cos: Tensor,  # [num_tokens, rotary_dim]; columns of a head beyond rotary_dim are not rotated
    sin: Tensor,  # [num_tokens, rotary_dim], the first half negated
    sequence_rows: Tensor,  # [num_seqs, 3] int32: first row, number of rows, position of the first row
    block_tables: Tensor,  # [num_seqs, max_blocks] int32
    scale: float,
    *,
    window: int | None = None,  # positions that a row sees, its own included
    softcap: float | None = None,  # scores become softcap tanh(score / softcap)
    head_norms: HeadNorms | None = None,
    sinks: Tensor | None = None,  # [num_heads] float32: a score, neither scaled nor capped, of no value
) -> Tensor:
    """Return softmax(scale q k^T) v, [num_tokens, num_heads * head_dim], causal; 0 for rows in no span.

    A head's sink has its weight in the softmax's denominator and adds nothing (Xiao et al., 2023).

    In plain torch and float32, one sequence after another.
    """
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    rows = qkv.float().view(qkv.shape[0], -1, head_dim)
    q, k, v = rows.split((rows.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
    if head_norms is not None:
        q, k = (
            F.rms_norm(x, x.shape[-1:], weight, head_norms.eps).to(qkv.dtype).float()
            for x, weight in ((q, head_norms.q), (k, head_norms.k))
        )
    out = torch.zeros_like(q)
    for (start, num_rows, first), table in zip(sequence_rows.tolist(), block_tables.long(), strict=True):
        mine, end = slice(start, start + num_rows), first + num_rows
        positions = torch.arange(first, end)
        places = table[positions // keys.shape[2]], slice(None), positions % keys.shape[2]
        keys[places] = _rotate(k[mine], cos[mine], sin[mine]).to(keys.dtype)
        values[places] = v[mine].to(values.dtype)
        seen = _gather(keys, table, end), _gather(values, table, end)
        rotated = _rotate(q[mine], cos[mine], sin[mine])
        out[mine] = _attend(rotated, *seen, positions, scale, window or end, softcap, sinks)
    return out.reshape(qkv.shape[0], -1).to(qkv.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [n, heads, head_dim]
    rotated, rest = x.tensor_split((cos.shape[1],), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos.float()[:, None] + torch.cat((second, first), dim=-1) * sin.float()[:, None]
    return torch.cat((rotated, rest), dim=-1)


def _gather(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:  # [kv_heads, num_tokens, head_dim]
    return cache[table].transpose(0, 1).flatten(1, 2)[:, :num_tokens].float()


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    scale: float,
    window: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    shared = q.shape[1] // k.shape[0]
    k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
    scores = torch.einsum("nhd,htd->hnt", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distances = positions[:, None] - torch.arange(k.shape[1])
    hidden = (distances < 0) | (distances >= window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, len(q), 1)), dim=-1)
    return torch.einsum("hnt,htd->nhd", scores.softmax(-1)[..., : k.shape[1]], v)

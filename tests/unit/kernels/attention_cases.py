"""Attention of random queries over a random paged cache, for the tests of every implementation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.attention.paged_attention import HeadNorms, PagedAttention, paged_attention_reference


@dataclass
class Case:
    qkv: Tensor
    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    sequence_rows: Tensor
    block_tables: Tensor
    scale: float
    window: int | None = None
    softcap: float | None = None
    head_norms: HeadNorms | None = None
    sinks: Tensor | None = None

    def copied(self) -> Case:
        parts: dict[str, Any] = {
            name: part.clone() for name, part in vars(self).items() if isinstance(part, Tensor)
        }
        return replace(self, **parts)

    def run(self, kernel: PagedAttention) -> Tensor:
        return kernel(**vars(self))

    def run_reference(self) -> Tensor:
        return paged_attention_reference(**vars(self))


def make_case(
    chunks: list[tuple[int, int]],  # per sequence: rows of this step, tokens already in the cache
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_padding: int = 0,
    rotary_dim: int | None = None,
) -> Case:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    num_blocks = [-(-(rows + seen) // block_size) for rows, seen in chunks]
    order = torch.randperm(sum(num_blocks), generator=generator).int() + 1
    tables = torch.zeros(len(chunks), max(num_blocks), dtype=torch.int32)
    for table, mine in zip(tables, order.split(num_blocks), strict=True):
        table[: len(mine)] = mine
    starts = torch.tensor([0, *(rows for rows, _ in chunks)]).cumsum(0)[:-1].tolist()
    num_tokens = sum(rows for rows, _ in chunks) + num_padding
    sequence_rows = torch.tensor([(start, *chunk) for start, chunk in zip(starts, chunks, strict=True)])
    cache_shape = (int(order.max()) + 1, num_kv_heads, block_size, head_dim)
    cos, sin = (random(num_tokens, rotary_dim or head_dim) for _ in range(2))
    qkv = random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    caches = random(*cache_shape), random(*cache_shape)
    return Case(qkv, *caches, cos, sin, sequence_rows.int(), tables, head_dim**-0.5)

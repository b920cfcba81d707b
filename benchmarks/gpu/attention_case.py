"""Attention over a random paged cache on the device, and the same in plain torch in any dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.device import Device, random
from kernels.attention.paged_attention import HeadNorms, PagedAttention

Chunk = tuple[int, int]
"""A sequence: its rows in this step, and the tokens before them that the cache holds."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The layout of heads and blocks."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    rotary_dim: int | None = None  # all of the head without it


@dataclass(frozen=True, slots=True)
class Options:
    """What some models do besides."""

    window: int | None = None
    softcap: float | None = None
    has_norms: bool = False
    has_sinks: bool = False


@dataclass(slots=True)
class AttentionCase:
    """The arguments of `PagedAttention`."""

    heads: Heads
    qkv: Tensor
    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    sequence_rows: Tensor
    block_tables: Tensor
    window: int | None
    softcap: float | None
    head_norms: HeadNorms | None
    sinks: Tensor | None

    def run(self, kernel: PagedAttention) -> Tensor:
        """Attend, storing this step's keys and values in the cache."""
        return kernel(
            self.qkv,
            self.keys,
            self.values,
            self.cos,
            self.sin,
            self.sequence_rows,
            self.block_tables,
            self.heads.head_dim**-0.5,
            window=self.window,
            softcap=self.softcap,
            head_norms=self.head_norms,
            sinks=self.sinks,
        )

    def take(self, other: AttentionCase) -> None:
        """Copy another step's contents to the same addresses."""
        for name in ("qkv", "keys", "values", "cos", "sin", "sequence_rows", "block_tables"):
            getattr(self, name).copy_(getattr(other, name))

    def copied(self) -> AttentionCase:
        """Return the same with a cache of its own."""
        return replace(self, qkv=self.qkv.clone(), keys=self.keys.clone(), values=self.values.clone())


def make_attention(
    device: Device,
    chunks: list[Chunk],
    heads: Heads,
    dtype: torch.dtype,
    *,
    options: Options = Options(),
    seed: int = 1,
    max_blocks: int = 0,  # of the table; as many as the longest sequence needs, without it
    num_blocks: int = 0,  # of the cache; as many as all need, without it
    num_padding: int = 0,
    is_poisoned: bool = True,
) -> AttentionCase:
    """Fill the cache up to each sequence's tokens; if it is poisoned, what lies behind them is NaN."""
    generator, size = device.generator(seed), heads.block_size
    needed = [-(-(rows + seen) // size) for rows, seen in chunks]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(seed)).int() + 1
    tables = torch.zeros(len(chunks), max(max_blocks, *needed), dtype=torch.int32)
    for table, mine in zip(tables, torch.split(order, needed), strict=True):
        table[: len(mine)] = mine
    starts = torch.tensor([0, *(rows for rows, _ in chunks)]).cumsum(0).tolist()
    sequence_rows = torch.tensor([(start, *chunk) for start, chunk in zip(starts, chunks, strict=False)])
    num_rows = starts[-1] + num_padding
    shape = (max(num_blocks, sum(needed) + 1), heads.num_kv_heads, size, heads.head_dim)
    keys, values = (random(device, generator, dtype, *shape) for _ in range(2))
    if is_poisoned:
        for cache in (keys, values):
            cache[0] = float("nan")
            for table, (_, seen) in zip(tables.tolist(), chunks, strict=True):
                cache[table[seen // size], :, seen % size :] = float("nan")
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    positions = torch.zeros(num_rows, dtype=torch.float64)
    for start, (rows, seen) in zip(starts, chunks, strict=False):
        positions[start : start + rows] = torch.arange(seen, seen + rows)
    cos, sin = (
        part.to(device.name, dtype) for part in _rotation(positions, heads.rotary_dim or heads.head_dim)
    )
    norms = None
    if options.has_norms:
        q_norm, k_norm = (
            random(device, generator, torch.float32, heads.head_dim).abs() + 0.2 for _ in range(2)
        )
        norms = HeadNorms(q_norm, k_norm, 1e-6)
    sinks = random(device, generator, torch.float32, heads.num_heads) if options.has_sinks else None
    return AttentionCase(
        heads,
        random(device, generator, dtype, num_rows, width),
        keys,
        values,
        cos,
        sin,
        sequence_rows.int().to(device.name),
        tables.to(device.name),
        options.window,
        options.softcap,
        norms,
        sinks,
    )


def _rotation(positions: Tensor, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines, and sines whose first half is negated."""
    frequencies = 10_000.0 ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.cos()] * 2, dim=1), torch.cat([-angles.sin(), angles.sin()], dim=1)


def attend_plainly(case: AttentionCase, dtype: torch.dtype) -> Tensor:
    """Compute what the kernel must, in float64, or in the case's dtype and rounded where torch rounds.

    The cache is changed like the kernel changes it, in the cache's own dtype.
    """
    heads, wide = case.heads, torch.float64 if dtype is torch.float64 else torch.float32
    rows = case.qkv.to(wide).view(case.qkv.shape[0], -1, heads.head_dim)
    q, k, v = torch.split(rows, [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
    if case.head_norms is not None:
        eps = case.head_norms.eps
        q, k = (
            # Rounded to the model's dtype, as `PagedAttention` says, even where all else is exact.
            F.rms_norm(x, x.shape[-1:], weight.to(wide), eps).to(case.qkv.dtype).to(wide)
            for x, weight in ((q, case.head_norms.q), (k, case.head_norms.k))
        )
    q, k, v = _rotate(q, case, wide).to(dtype), _rotate(k, case, wide).to(dtype), v.to(dtype)
    out = torch.zeros_like(q)
    for (start, num_rows, first), table in zip(
        case.sequence_rows.tolist(), case.block_tables.long(), strict=True
    ):
        mine, end = slice(start, start + num_rows), first + num_rows
        positions = torch.arange(first, end, device=q.device)
        places = table[positions // heads.block_size], slice(None), positions % heads.block_size
        case.keys[places], case.values[places] = k[mine].to(case.keys.dtype), v[mine].to(case.values.dtype)
        seen_k, seen_v = (_gather(cache, table, end, heads).to(dtype) for cache in (case.keys, case.values))
        # This step's own, not rounded by the cache where all is exact.
        seen_k[:, first:end], seen_v[:, first:end] = k[mine].transpose(0, 1), v[mine].transpose(0, 1)
        out[mine] = _attend(q[mine], seen_k, seen_v, positions, case, wide)
    return out.reshape(case.qkv.shape[0], -1)


def _rotate(x: Tensor, case: AttentionCase, wide: torch.dtype) -> Tensor:  # [rows, heads, head_dim]
    cos, sin = (part.to(wide)[:, None] for part in (case.cos, case.sin))
    turned, rest = x.tensor_split((case.cos.shape[1],), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cos + torch.cat((second, first), dim=-1) * sin, rest), dim=-1)


def _gather(cache: Tensor, table: Tensor, num_tokens: int, heads: Heads) -> Tensor:
    blocks = table[: -(-num_tokens // heads.block_size)]
    return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :num_tokens]  # [kv_heads, num_tokens, head_dim]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, case: AttentionCase, wide: torch.dtype
) -> Tensor:
    group = case.heads.num_heads // case.heads.num_kv_heads
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)).to(wide) * case.heads.head_dim**-0.5
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    distances = positions[:, None] - torch.arange(k.shape[1], device=k.device)
    hidden = (distances < 0) | (distances >= (case.window or k.shape[1] + 1))
    scores = scores.masked_fill(hidden, float("-inf"))
    if case.sinks is not None:
        column = case.sinks.to(wide).view(-1, 1, 1).expand(-1, scores.shape[1], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[1]]
    out: Tensor = weights.to(v.dtype) @ v
    return out.transpose(0, 1)

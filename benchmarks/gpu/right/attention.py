"""Rotation, storing and attention over the paged cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.attention_case import AttentionCase, Chunk, Heads, Options, attend_plainly, make_attention
from benchmarks.gpu.device import Device
from benchmarks.gpu.errors import Verdict, judge, same
from benchmarks.gpu.right.check import Check, Found, dtypes_of, short
from kernels.registry import resolve

_LLAMA = Heads(32, 8, 128)
_HEADS = (
    _LLAMA,
    Heads(32, 8, 128, block_size=32),
    Heads(14, 2, 64),
    Heads(6, 2, 96, rotary_dim=32),
    Heads(8, 1, 256, block_size=32),
    Heads(16, 16, 64),
    Heads(64, 8, 64),
)
_OPTIONS = (
    Options(window=1000),
    Options(softcap=30.0),
    Options(has_norms=True),
    Options(window=128, has_sinks=True),
    Options(window=33, softcap=5.0, has_norms=True, has_sinks=True),
)
_DECODE: list[Chunk] = [(1, seen) for seen in (0, 1, 15, 16, 511, 512, 513, 1023, 2047, 3100, 4999)]
_MIXED: list[Chunk] = [(1, 4999), (300, 0), (17, 1000), (1, 511), (2, 510), (1, 0), (130, 40)]
_SHORT: list[Chunk] = [(1, 31), (1, 400), (1, 0), (1, 511)]
_BATCHES = {"decode": _DECODE, "mixed": _MIXED, "short": _SHORT}
_TINY_BATCHES: dict[str, list[Chunk]] = {"decode": [(1, 20), (1, 0)], "mixed": [(1, 17), (3, 2)]}


def checks(device: Device) -> Iterator[Check]:
    """Yield every check of attention."""
    batches = _TINY_BATCHES if device.is_rehearsal else _BATCHES
    heads = (Heads(2, 1, 16),) if device.is_rehearsal else _HEADS
    for dtype in dtypes_of(device):
        for layout in heads:
            check = partial(_compare, batches=batches, heads=layout, dtype=dtype, options=Options())
            yield Check("attention", f"{short(dtype)} {_named(layout)}", check)
    for dtype in dtypes_of(device)[:2]:
        for options in _OPTIONS[-1:] if device.is_rehearsal else _OPTIONS:
            check = partial(_compare, batches=batches, heads=heads[0], dtype=dtype, options=options)
            yield Check("attention", f"{short(dtype)} {options}", check)
    yield Check("attention in a graph", "lengths and blocks change", partial(_graph, heads=heads[0]))
    yield Check("attention of one row", "whatever its neighbours", partial(_neighbours, heads=heads[0]))


def _named(heads: Heads) -> str:
    return f"{heads.num_heads}/{heads.num_kv_heads} heads of {heads.head_dim}, blocks of {heads.block_size}"


def _compare(
    device: Device, batches: dict[str, list[Chunk]], heads: Heads, dtype: torch.dtype, options: Options
) -> Found:
    attend = resolve("paged_attention", device.name, dtype, "triton")
    for name, chunks in batches.items():
        case = make_attention(device, chunks, heads, dtype, options=options, num_padding=2)
        plain, exact = case.copied(), case.copied()
        expected = attend_plainly(plain, dtype), attend_plainly(exact, torch.float64)
        device.poison()
        out = case.run(attend)
        yield name, judge(out, *expected, max(rows + seen for rows, seen in chunks))
        yield f"{name}: padding rows", same(out[-2:], torch.zeros_like(out[-2:]))
        yield f"{name}: keys", _as_near(case.keys, plain.keys, dtype)
        yield f"{name}: values", same(*(_known(cache) for cache in (case.values, plain.values)))


def _known(cache: Tensor) -> Tensor:
    """Return the cache with a number that occurs nowhere for NaN, which equals nothing."""
    return cache.nan_to_num(nan=12345.0)


def _as_near(cache: Tensor, plain: Tensor, dtype: torch.dtype) -> Verdict:
    """Hold stored keys to a unit in the last place of what torch stores, what was not stored to its NaN."""
    first, second = (_known(one).double() for one in (cache, plain))
    error = float(((first - second).abs() / (1 + second.abs())).max())
    limit = max(2 * torch.finfo(dtype).eps, 2e-6)
    return Verdict(error, limit, error <= limit)


def _graph(device: Device, heads: Heads) -> Found:
    """Capture a decode step once; then lengths, blocks and rows change at the same addresses."""
    dtype = dtypes_of(device)[0]
    attend = resolve("paged_attention", device.name, dtype, "triton")
    num_seqs, longest = (2, 40) if device.is_rehearsal else (32, 5000)
    generator = torch.Generator().manual_seed(8)
    width = -(-longest // heads.block_size)

    def step(seed: int) -> AttentionCase:
        seen = torch.randint(longest // (1 + seed % 3), (num_seqs,), generator=generator).tolist()
        return make_attention(
            device,
            [(1, one) for one in seen],
            heads,
            dtype,
            seed=seed,
            max_blocks=width,
            num_blocks=num_seqs * width + 1,
        )

    static, held = step(0), []

    def launch() -> None:
        held.append(static.run(attend))

    replay = device.capture([launch])
    for turn in range(1, 5):
        other = step(turn)
        static.take(other)
        replay()
        plain = attend_plainly(other.copied(), dtype)
        exact = attend_plainly(other, torch.float64)
        yield f"replay {turn}", judge(held[-1], plain, exact, longest)


def _neighbours(device: Device, heads: Heads) -> Found:
    dtype = dtypes_of(device)[0]
    attend = resolve("paged_attention", device.name, dtype, "triton")
    chunks: list[Chunk] = [(1, 30), (1, 7)] if device.is_rehearsal else [(1, 3100), *_DECODE]
    case = make_attention(device, chunks, heads, dtype)
    alone = case.copied()
    together = case.run(attend)
    alone.qkv, alone.cos, alone.sin = (part[:1].contiguous() for part in (alone.qkv, alone.cos, alone.sin))
    alone.sequence_rows = alone.sequence_rows[:1].contiguous()
    alone.block_tables = alone.block_tables[:1].contiguous()
    yield "bits", same(alone.run(attend), together[:1])

"""Compiled kernels touch nothing behind their arguments: each lies before a page that nobody may touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.library import LEVELS, Level
from kernels.lora.tables import PackedLoRA
from tests.emulated.library import at_level
from tests.guarded_memory import GuardedMemory
from tests.unit.kernels.random_adapters import make_case
from tests.unit.kernels.random_codes import random_weight

# Below, at and above the lanes of both levels, and of two vectors.
WIDTHS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)


@pytest.fixture(params=[name for name in LEVELS if name != "torch"])
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """Every compiled level."""
    with at_level(request.param) as level:
        yield level


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def random(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Random tensors of one dtype."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator).to(request.param)


def guarded(values: Tensor) -> Tensor:
    """Return a copy in memory of its own, which lives as long as the tensor does."""
    flat = torch.frombuffer(GuardedMemory(values.nbytes).buffer, dtype=values.dtype)
    return flat.view(values.shape).copy_(values)


def assert_same_behind_guards(operator: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Assert that an operator returns and writes the same bits where nothing lies behind its arguments."""
    behind = [guarded(one) if isinstance(one, Tensor) else one for one in arguments]
    before = [one.clone() if isinstance(one, Tensor) else one for one in arguments]

    results = operator(*before), operator(*behind)

    for one, other in zip((*before, results[0]), (*behind, results[1]), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_norms_and_gates(width: int, random: Callable[..., Tensor], level: Level) -> None:
    residual, delta, gate_up = random(3, width), random(3, width), random(3, 2 * width)
    norm = library.operator("add_rms_norm", level)

    assert_same_behind_guards(norm, (residual, delta, random(width).float(), 1e-6))
    assert_same_behind_guards(norm, (residual, None, random(width).float(), 1e-6))
    assert_same_behind_guards(library.operator("swiglu", level), (gate_up,))
    assert_same_behind_guards(library.operator("geglu", level), (gate_up,))
    assert_same_behind_guards(library.operator("clamped_swiglu", level), (gate_up, 1.702, 7.0))


@pytest.mark.parametrize("width", WIDTHS)
def test_logits_and_linear_modules(width: int, level: Level) -> None:
    for num_rows, vocab_size in ((1, 1), (2, 17), (3, 16), (9, 5)):
        x, head = (torch.randn(rows, width).bfloat16() for rows in (num_rows, vocab_size))
        bias = torch.randn(vocab_size).bfloat16()

        assert_same_behind_guards(library.operator("logits", level), (x, head))
        assert_same_behind_guards(library.operator("linear", level), (x, head, bias))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_quantised_linear_modules(width: int, bits: int, random: Callable[..., Tensor], level: Level) -> None:
    weight = random_weight(19, width, bits=bits, block=16, table=torch.linspace(-8, 8, 16))
    codes = weight.codes, weight.scales, weight.zeros, weight.table
    for num_rows in (1, 2, 3, 4):
        out, x = random(num_rows, 19), random(num_rows, width)

        arguments = (out, 0, x, *codes, random(19), weight.block)
        assert_same_behind_guards(library.operator("quantized_linear", level), arguments)


@pytest.mark.parametrize("head_dim", [6, 10, 16, 32, 80])
def test_attention(head_dim: int, random: Callable[..., Tensor], level: Level) -> None:
    # Two rows fill the cache to its last row, seven end within a block; first in one split, then in two.
    num_heads, num_kv_heads, num_blocks = 6, 2, 33
    for num_rows, position in ((2, 14), (7, 0), (2, 526), (7, 506)):
        qkv = random(num_rows, (num_heads + 2 * num_kv_heads) * head_dim)
        caches = (
            random(num_blocks, num_kv_heads, 16, head_dim),
            random(num_blocks, num_kv_heads, 16, head_dim),
        )
        angles = random(num_rows, head_dim), random(num_rows, head_dim)
        span = torch.tensor([[0, num_rows, position]], dtype=torch.int32)
        table = torch.arange(num_blocks, dtype=torch.int32).flip(0)[None]
        if position > 100:
            table = table.flip(1)
        norms = random(head_dim).float(), random(head_dim).float()

        sinks = random(num_heads).float()
        arguments = (qkv, *caches, *angles, span, table.contiguous(), 0.3, 0, 0.0, *norms, 1e-6, sinks)
        assert_same_behind_guards(library.operator("paged_attention", level), arguments)


@pytest.mark.parametrize("has_extras", [False, True], ids=["plain", "with bias and DoRA"])
@pytest.mark.parametrize("width", WIDTHS)
def test_lora(width: int, has_extras: bool, random: Callable[..., Tensor], level: Level) -> None:
    case = make_case(
        ranks=[[16, 32], [32, 16]],
        slots=[0, 0, 0, 1],
        in_features=width,
        slice_widths=[width, 19],
        dtype=random(1).dtype,
        has_extras=has_extras,
    )
    for slot in (0, 1):
        case.one.set(slot, behind_guards(case.module.weights(slot)))
    (lora_pass,) = case.segments.passes
    runs = lora_pass.table, lora_pass.scales, case.module.table, case.module.first_entry, case.module.columns

    assert_same_behind_guards(library.operator("lora_add", level), (case.out, case.x, *runs))


def behind_guards(adapter: PackedLoRA | None) -> PackedLoRA:
    """The adapter with a guard behind each tensor; the ranks are not padded, so that A's last row is read."""
    assert adapter is not None
    moved = []
    for part in adapter.slices:
        bias, dora = (None if extra is None else guarded(extra) for extra in (part.bias, part.dora))
        moved.append(part._replace(b_t=guarded(part.b_t), bias=bias, dora=dora))
    return PackedLoRA(guarded(adapter.a), tuple(moved))

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.cpu.library import Level
from kernels.lora.add import LoRAAdd
from kernels.lora.segments import Pass, Run, Segments, SlotScale
from kernels.lora.tables import (
    RANK_MULTIPLE,
    LoRAModule,
    LoRASlice,
    LoRATable,
    PackedLoRA,
    PackedShape,
    Slice,
    WeightsKey,
)
from tests.unit.kernels.one_module import OneModule
from tests.unit.products import assert_same_rows

pytestmark = pytest.mark.numeric

WIDTHS = (48, 16, 16)
IN_FEATURES = 64


def assert_own_bits(one: Tensor, other: Tensor, level: Level) -> None:
    """Assert that rows do not depend on their batch, as far as torch's products do not."""
    # Sums over some 100 ranks of x A, whose numbers are around the root of IN_FEATURES.
    assert_same_rows(one, other, multiplied_in=one.dtype if level == "torch" else None, size=80)


def make_adapter(
    ranks: tuple[int | None, ...],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    in_features: int = IN_FEATURES,
) -> PackedLoRA:
    """Random weights with one rank per sub-module; None is a sub-module the adapter lacks."""
    bounds = [sum(WIDTHS[:part]) for part in range(len(WIDTHS) + 1)]
    stacked, parts, start = [], [], 0
    for rank, (left, right) in zip(ranks, pairwise(bounds), strict=True):
        if rank is None:
            continue
        padded = -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
        a, b_t = torch.zeros(padded, in_features), torch.zeros(padded, right - left)
        a[:rank] = torch.randn(rank, in_features, generator=generator)
        b_t[:rank] = torch.randn(rank, right - left, generator=generator)
        stacked.append(a.to(dtype))
        parts.append(LoRASlice(Slice(left, right), Slice(start, start + padded), b_t.to(dtype)))
        start += padded
    return PackedLoRA(torch.cat(stacked), tuple(parts))


def make_module(adapters: list[PackedLoRA | None], in_features: int = IN_FEATURES) -> LoRAModule:
    return make_one_module(adapters, in_features).module


def make_one_module(adapters: list[PackedLoRA | None], in_features: int = IN_FEATURES) -> OneModule:
    dtype = next(adapter.a.dtype for adapter in adapters if adapter is not None)
    return OneModule(in_features, WIDTHS, adapters, dtype)


def dense(adapter: PackedLoRA, x: Tensor) -> Tensor:
    delta = torch.zeros(x.shape[0], sum(WIDTHS), dtype=torch.float64)
    for columns, ranks, b_t, *_ in adapter.slices:
        a = adapter.a[ranks.start : ranks.end].double()
        delta[:, columns.start : columns.end] = x.double() @ a.T @ b_t.double()
    return delta


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_mixed_batch_adds_each_rows_own_adapter_and_nothing_to_base_rows(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    adapters = [make_adapter((8, 8, 8), generator), make_adapter((1, None, 40), generator)]
    module = make_module([*adapters, None])
    slots = [1, 1, -1, 0, 0, 0, 0, 0, -1, 2, 1]
    x, out = torch.randn(11, IN_FEATURES, generator=generator), torch.randn(11, 80, generator=generator)
    before = out.clone()

    add_lora(out, x, Segments.from_slots(slots), module)

    for row, slot in enumerate(slots):
        if slot in (-1, 2):
            assert torch.equal(out[row], before[row])
        else:
            expected = before[row].double() + dense(adapters[slot], x[row : row + 1])[0]
            torch.testing.assert_close(out[row].double(), expected, atol=1e-4, rtol=1e-4)


def test_rows_of_several_adapters_get_the_sum_of_all_each_times_its_scale(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    adapters = [make_adapter((8, 8, 8), generator), make_adapter((1, None, 40), generator)]
    module = make_module([*adapters, None])
    mix = (SlotScale(0, 0.5), SlotScale(1, -2.0), SlotScale(2))
    rows = [(2, (SlotScale(0),)), (5, mix), (1, ()), (3, (SlotScale(1, 0.25),)), (4, (SlotScale(0, 0.0),))]
    x, out = torch.randn(15, IN_FEATURES, generator=generator), torch.randn(15, 80, generator=generator)
    before = out.clone()

    add_lora(out, x, Segments.from_runs(rows), module)

    expected = before.double()
    expected[:2] += dense(adapters[0], x[:2])
    expected[2:7] += 0.5 * dense(adapters[0], x[2:7]) - 2.0 * dense(adapters[1], x[2:7])
    expected[8:11] += 0.25 * dense(adapters[1], x[8:11])
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(out[7], before[7])
    assert torch.equal(out[11:], before[11:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_behaviour_08_a_row_of_several_adapters_has_the_same_bits_whatever_its_neighbours_have(
    dtype: torch.dtype, generator: torch.Generator, add_lora: LoRAAdd, level: Level
) -> None:
    module = make_module([make_adapter((rank, rank, rank), generator, dtype) for rank in (8, 16, 40)])
    x = torch.randn(9, IN_FEATURES, generator=generator).to(dtype)
    mix = (SlotScale(2, 0.5), SlotScale(0, -1.5))
    alone, among = torch.zeros(1, 80, dtype=dtype), torch.zeros(9, 80, dtype=dtype)
    neighbours = (3, (SlotScale(0, -1.5), SlotScale(2, 0.5), SlotScale(1))), (1, mix), (5, mix[:1])

    add_lora(alone, x[3:4], Segments.from_runs([(1, mix)]), module)
    add_lora(among, x, Segments.from_runs(neighbours), module)

    assert_own_bits(among[3:4], alone, level)


def test_columns_of_a_missing_sub_module_keep_their_bits(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    module = make_module([make_adapter((8, None, 8), generator)])
    x, out = torch.randn(5, IN_FEATURES), torch.randn(5, 80)
    before = out.clone()

    add_lora(out, x, Segments.from_slots([0] * 5), module)

    assert torch.equal(out[:, 48:64], before[:, 48:64])
    assert not torch.equal(out[:, :48], before[:, :48])


def test_nothing_of_a_wide_adapter_stays_when_a_narrow_one_takes_its_slot(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    narrow = make_adapter((4, None, None), generator)
    used, fresh = make_one_module([make_adapter((64, 64, 64), generator)]), make_module([narrow])
    x = torch.randn(6, IN_FEATURES, generator=generator)
    segments = Segments.from_slots([0] * 6)
    add_lora(torch.zeros(6, 80), x, segments, used.module)

    used.set(0, narrow)
    from_used, from_fresh = torch.zeros(6, 80), torch.zeros(6, 80)
    add_lora(from_used, x, segments, used.module)
    add_lora(from_fresh, x, segments, fresh)

    assert torch.equal(from_used, from_fresh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_features", [33, 64])
@pytest.mark.parametrize("ranks", [(1, 1, 1), (7, None, 3), (None, 2, None), (16, 16, 16), (100, 64, 8)])
def test_behaviour_08_a_row_has_the_same_bits_for_every_batch_size_place_and_slot(
    ranks: tuple[int | None, ...],
    in_features: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    add_lora: LoRAAdd,
    level: Level,
) -> None:
    mine = make_adapter(ranks, generator, dtype, in_features)
    other = make_adapter((32, 32, 32), generator, dtype, in_features)
    x = torch.randn(200, in_features, generator=generator).to(dtype)
    whole = torch.zeros(200, 80, dtype=dtype)
    add_lora(whole, x, Segments.from_slots([0] * 200), make_module([mine, other], in_features))

    module = make_module([other, mine], in_features)
    for num_rows in (*range(1, 21), 31, 64, 129):
        for start in (0, 1, 2, 3, 50):
            out = torch.zeros(num_rows + 5, 80, dtype=dtype)
            batch = torch.cat([x[-5:], x[start : start + num_rows]])
            add_lora(out, batch, Segments.from_slots([0] * 5 + [1] * num_rows), module)
            assert_own_bits(out[5:], whole[start : start + num_rows], level)


def test_one_adapters_nan_reaches_only_its_own_rows(generator: torch.Generator, add_lora: LoRAAdd) -> None:
    good, bad = make_adapter((8, 8, 8), generator), make_adapter((8, 8, 8), generator)
    bad.a.fill_(float("nan"))
    x = torch.randn(9, IN_FEATURES, generator=generator)
    segments = Segments.from_slots([0, 0, 0, 1, 1, -1, 0, 0, 0])
    out, clean = torch.zeros(9, 80), torch.zeros(9, 80)

    add_lora(out, x, segments, make_module([good, bad]))
    add_lora(clean, x, segments, make_module([good, None]))

    assert torch.isnan(out[3:5]).all()
    keep = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(out[keep], clean[keep])


def test_one_rows_nan_reaches_no_other_row_of_its_adapter(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    module = make_module([make_adapter((8, 8, 8), generator)])
    x = torch.randn(6, IN_FEATURES, generator=generator)
    poisoned = x.clone()
    poisoned[2] = float("inf")
    out, clean = torch.zeros(6, 80), torch.zeros(6, 80)

    add_lora(out, poisoned, Segments.from_slots([0] * 6), module)
    add_lora(clean, x, Segments.from_slots([0] * 6), module)

    assert torch.equal(out[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_shapes_that_do_not_fit_are_refused_with_the_shapes(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    module = make_module([make_adapter((8, 8, 8), generator)])

    with pytest.raises(ValueError, match=r"x is \(3, 64\) and out is \(3, 79\).*\(3, 64\) and \(3, 80\)"):
        add_lora(torch.zeros(3, 79), torch.zeros(3, 64), Segments.from_slots([0] * 3), module)


def test_two_dtypes_are_refused(generator: torch.Generator, add_lora: LoRAAdd) -> None:
    module = make_module([make_adapter((8, 8, 8), generator)])

    with pytest.raises(ValueError, match=r"x is torch.float16 .* out is torch.float32"):
        add_lora(torch.zeros(3, 80), torch.zeros(3, 64).half(), Segments.from_slots([0] * 3), module)


def with_extras(adapter: PackedLoRA, generator: torch.Generator, *, dora: bool) -> PackedLoRA:
    """Give the first sub-module DoRA's terms and the last one a bias, or the first a bias only."""

    def terms(width: int) -> Tensor:
        magnitude = torch.randn(width, generator=generator)
        norms = 4.0 + torch.rand(3, width, generator=generator)
        return torch.stack([magnitude, *norms, torch.randn(width, generator=generator)])

    first, *others, last = adapter.slices
    first = first._replace(dora=terms(first.b_t.shape[1])) if dora else first
    last = last._replace(bias=torch.randn(last.b_t.shape[1], generator=generator))
    return PackedLoRA(adapter.a, (first, *others, last))


def extras_of(adapter: PackedLoRA, base: Tensor, x: Tensor, scale: float) -> Tensor:
    """Return base plus adapter in double precision, straight from the definitions."""
    out = base.double() + scale * dense(adapter, x)
    for columns, _, _, bias, dora, _ in adapter.slices:
        view = out[:, columns.start : columns.end]
        if bias is not None:
            view += scale * bias.double()
        if dora is not None:
            magnitude, square_norm, cross, delta, base_bias = dora.double()
            gain = magnitude / (square_norm + scale * cross + scale**2 * delta).sqrt()
            view.copy_(gain * (view - base_bias) + base_bias)
    return out


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0])
def test_bias_and_dora_terms_finish_the_rows_of_their_adapter_only(
    scale: float, generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    adapters = [
        with_extras(make_adapter((8, 8, 8), generator), generator, dora=True),
        make_adapter((16, None, 8), generator),
        with_extras(make_adapter((1, None, 40), generator), generator, dora=False),
    ]
    slots = [0, 0, 0, 0, 0, -1, 1, 2, 2, 0]
    x, out = torch.randn(10, IN_FEATURES, generator=generator), torch.randn(10, 80, generator=generator)
    before = out.clone()

    runs = [(1, () if slot == -1 else (SlotScale(slot, scale),)) for slot in slots]
    add_lora(out, x, Segments.from_runs(runs), make_module([*adapters]))

    assert torch.equal(out[5], before[5])
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected = extras_of(adapters[slot], before[row : row + 1], x[row : row + 1], scale)[0]
            torch.testing.assert_close(out[row].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_with_extras_has_the_same_bits_whatever_its_neighbours_have(
    dtype: torch.dtype, generator: torch.Generator, add_lora: LoRAAdd, level: Level
) -> None:
    adapter = with_extras(make_adapter((8, 8, 40), generator, dtype), generator, dora=True)
    module = make_module([adapter, make_adapter((8, 8, 8), generator, dtype)])
    x = torch.randn(9, IN_FEATURES, generator=generator).to(dtype)
    alone, among = torch.zeros(1, 80, dtype=dtype), torch.zeros(9, 80, dtype=dtype)

    add_lora(alone, x[6:7], Segments.from_slots([0]), module)
    add_lora(among, x, Segments.from_slots([1, 1, 1, 0, 0, 0, 0, -1, 0]), module)

    assert_own_bits(among[6:7], alone, level)


def test_a_slot_given_to_a_plain_adapter_keeps_no_bias_and_no_dora(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    plain = make_adapter((8, 8, 8), generator)
    one = make_one_module([with_extras(plain, generator, dora=True)])
    x, out, expected = torch.randn(3, IN_FEATURES), torch.zeros(3, 80), torch.zeros(3, 80)

    one.set(0, plain)
    add_lora(out, x, Segments.from_slots([0, 0, 0]), one.module)

    add_lora(expected, x, Segments.from_slots([0, 0, 0]), make_module([plain]))
    assert torch.equal(out, expected)


def test_terms_of_another_width_are_refused_with_their_shape(generator: torch.Generator) -> None:
    plain = make_adapter((8, 8, 8), generator)
    wrong = PackedLoRA(plain.a, (plain.slices[0]._replace(bias=torch.zeros(3)), *plain.slices[1:]))

    with pytest.raises(ValueError, match=r"\(3,\); give contiguous float32 \(48,\)"):
        make_module([wrong])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_has_its_own_scale_within_one_run_and_the_bits_it_has_alone(
    dtype: torch.dtype, generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    plain = make_adapter((8, 8, 40), generator, dtype)
    module = make_module([with_extras(plain, generator, dora=True)])
    scales = [1.0, -0.5, 0.0, 2.5, 1.0, 0.125, 3.0, 1.0, 0.75]
    x = torch.randn(9, IN_FEATURES, generator=generator).to(dtype)
    among = torch.zeros(9, 80, dtype=dtype)
    segments = Segments.from_runs([(1, (SlotScale(0, scale),)) for scale in scales])

    add_lora(among, x, segments, module)

    assert len(segments.passes[0].runs) == 1
    for row, scale in enumerate(scales):
        alone = torch.zeros(1, 80, dtype=dtype)
        add_lora(alone, x[row : row + 1], Segments.from_runs([(1, (SlotScale(0, scale),))]), module)
        assert torch.equal(among[row : row + 1], alone)


def test_experts_of_one_slot_have_matrices_of_their_own(
    generator: torch.Generator, add_lora: LoRAAdd
) -> None:
    shape = PackedShape(IN_FEATURES, WIDTHS, torch.float32, num_experts=3)
    table = LoRATable({"other": PackedShape(8, (4,), torch.float32), "experts": shape}, 2)
    adapters = {expert: make_adapter((8, None, 16), generator) for expert in (0, 2)}
    table.point(1, table.describe({WeightsKey("experts", at): one for at, one in adapters.items()}))
    x, out = torch.randn(6, IN_FEATURES, generator=generator), torch.zeros(6, 80)
    runs = [Run(0, 2, 1, 0), Run(2, 4, 1, 1), Run(4, 5, 1, 2), Run(5, 6, 0, 2)]
    scales = np.array([1, 2, 1, 1, 0.5, 1], dtype=np.float32)

    add_lora(out, x, Segments(6, (Pass.of(runs, scales),)), table.module("experts"))

    expected = torch.zeros(6, 80, dtype=torch.float64)
    expected[0], expected[1] = dense(adapters[0], x[:1])[0], 2 * dense(adapters[0], x[1:2])[0]
    expected[4] = 0.5 * dense(adapters[2], x[4:5])[0]
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)

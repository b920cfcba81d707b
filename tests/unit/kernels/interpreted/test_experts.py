"""The kernels of layers with experts on host memory, in the dtypes that run, against plain torch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.experts.expert_rows import segments_on_host, sort_on_host
from kernels.experts.sort_by_expert import DeviceRows, sort_by_expert_reference
from kernels.lora.reference import lora_add_reference
from kernels.lora.segments import Pass, Segments, SlotScale
from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, PackedShape, Slice, WeightsKey
from kernels.registry import by_name, resolve

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN = float("nan")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written holds NaN, or numbers of no row: what reads it is found out."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(NAN if made.is_floating_point() else -9)

    monkeypatch.setattr(torch, "empty", filled)


def kernel(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return resolve(name, "cpu", dtype, "triton")


def random(dtype: torch.dtype, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chosen_of(num_rows: int, num_chosen: int, num_experts: int) -> Tensor:
    return random(torch.float32, num_rows, num_experts).topk(num_chosen).indices


def assert_as_near_as_torch(result: Tensor, plain: Tensor, exact: Tensor, num_terms: int) -> None:
    size = float(exact.square().mean().sqrt())
    error, torch_error = (float((one.double() - exact).norm() / exact.norm()) for one in (result, plain))
    assert result.shape == exact.shape
    if result.dtype is torch.float32:
        assert float((result.double() - exact).abs().max()) <= 2e-6 * num_terms**0.5 * (1 + size)
    assert error <= max(1.5 * torch_error, torch.finfo(result.dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_chosen", "num_experts", "normalizes"), [(2, 5, True), (6, 33, False)])
def test_the_likeliest_experts_are_chosen_with_their_shares(
    num_chosen: int, num_experts: int, normalizes: bool, dtype: torch.dtype
) -> None:
    # No two of a row are equal, in any dtype.
    order = torch.stack([torch.randperm(num_experts) for _ in range(3)])
    logits = (order / 4.0 - 3.0).to(dtype)

    choice = kernel("choose_experts", dtype)(logits, num_chosen, normalizes)

    exact = by_name("choose_experts").reference(logits, num_chosen, normalizes)
    assert torch.equal(choice.chosen, exact.chosen)
    torch.testing.assert_close(choice.shares, exact.shares, atol=1e-7, rtol=2e-6)


def test_of_equally_likely_experts_the_first_are_chosen() -> None:
    logits = torch.tensor([[1.0] * 5, [0.0, 3.0, 1.0, 3.0, 3.0], [-1.0, -1.0, -2.0, 5.0, -1.0]])

    choice = kernel("choose_experts")(logits, 2, True)

    assert choice.chosen.tolist() == [[0, 1], [1, 3], [3, 0]]
    assert choice.shares[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_row_with_nan_chooses_valid_experts_and_leaves_the_others_alone() -> None:
    logits = random(torch.float32, 4, 6)
    spoiled = logits.clone()
    spoiled[1, 3], spoiled[2] = NAN, NAN

    choice, clean = (kernel("choose_experts")(one, 3, True) for one in (spoiled, logits))

    assert choice.chosen[1:3].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert choice.shares[1:3].isnan().all()
    assert torch.equal(choice.shares[[0, 3]], clean.shares[[0, 3]])
    assert torch.equal(choice.chosen[[0, 3]], clean.chosen[[0, 3]])


ROUTINGS = {
    "any": chosen_of(23, 2, 4),
    "one row": chosen_of(1, 3, 3),
    "one expert has everything": torch.full((40, 1), 2),
    "two experts have none": torch.tensor([[1, 3], [3, 1], [1, 3]]),
    "more than a block": chosen_of(600, 2, 3),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_choices_are_sorted_by_expert_and_cut_into_tiles(name: str) -> None:
    num_experts = {"one row": 3, "more than a block": 3}.get(name, 4)

    rows = kernel("sort_by_expert")(ROUTINGS[name], num_experts)

    expected = sort_by_expert_reference(ROUTINGS[name], num_experts)
    on_host = sort_on_host(ROUTINGS[name], num_experts)
    assert rows.tile_rows == expected.tile_rows
    for field in fields(DeviceRows)[:-1]:
        assert torch.equal(getattr(rows, field.name), getattr(expected, field.name)), field.name
    assert torch.equal(rows.sources, on_host.sources)
    assert torch.equal(rows.places, on_host.places)


def test_rows_of_no_sequence_have_no_expert_and_stay_where_they_are() -> None:
    chosen, sequence_rows = chosen_of(9, 2, 3), torch.tensor([[0, 1, 7], [1, 4, 0], [5, 0, 0]]).int()

    rows = kernel("sort_by_expert")(chosen, 3, sequence_rows)

    expected = sort_by_expert_reference(chosen, 3, sequence_rows)
    for field in fields(DeviceRows)[:-1]:
        assert torch.equal(getattr(rows, field.name), getattr(expected, field.name)), field.name
    assert rows.starts[-1] == rows.tiles.amax() == 10
    assert rows.sources[10:].tolist() == [5, 5, 6, 6, 7, 7, 8, 8]
    assert rows.places[10:].tolist() == list(range(10, 18))


def some(num_rows: int, *slots: int) -> tuple[int, tuple[SlotScale, ...]]:
    return num_rows, tuple(SlotScale(slot, 0.5 + slot) for slot in slots)


BATCHES = {
    "rows of the base between adapters": [some(3, 1), some(5), some(2, 0), some(4, 1)],
    "mixes": [some(2, 1, 0), some(6, 1), some(1, 2, 0), some(5)],
    "one adapter for more than a block": [some(70, 2)],
    "an adapter for every row": [some(1, slot) for slot in range(18)],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("num_experts", "num_tiles"), [(1, 20), (3, 20), (3, 0)])
def test_tiles_of_adapters_are_cut_where_slot_or_expert_changes(
    name: str, num_experts: int, num_tiles: int
) -> None:
    batch = Segments.from_runs(BATCHES[name], block_rows=16, num_tiles=num_tiles)
    chosen = chosen_of(batch.num_rows, min(2, num_experts), num_experts)
    rows = sort_by_expert_reference(chosen, num_experts)

    made = kernel("expert_segments")(rows, batch)

    expected = by_name("expert_segments").reference(rows, batch)
    on_host = segments_on_host(sort_on_host(chosen, num_experts), batch)
    assert len(made.passes) == len(batch.passes)
    for one, other, whole in zip(made.passes, expected.passes, on_host.passes, strict=True):
        assert torch.equal(one.table, other.table)
        assert torch.equal(one.scales, other.scales)
        assert torch.equal(one.scales, whole.scales)
        assert rows_of(one.table.tolist()) == rows_of(whole.table.tolist())
        assert all(end - start <= one.block_rows for start, end, _, _ in one.table.tolist())


def rows_of(table: list[list[int]]) -> dict[int, tuple[int, int]]:
    """Return slot and expert of every row; AssertionError for a row that lies in two tiles."""
    found: dict[int, tuple[int, int]] = {}
    for start, end, slot, expert in table:
        assert found.keys().isdisjoint(range(start, end))
        found |= dict.fromkeys(range(start, end), (slot, expert))
    return found


def test_no_adapter_makes_idle_tiles_only() -> None:
    rows = sort_by_expert_reference(chosen_of(9, 2, 2), 2)
    idle = Segments(9, (Pass.of((), np.ones(9, np.float32), block_rows=16, num_tiles=3),))

    (made,) = kernel("expert_segments")(rows, idle).passes

    assert made.table.tolist() == [[0, 0, -1, 0]] * len(made.table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "in_features", "out_features"), [(5, 33, 70), (20, 160, 48)])
@pytest.mark.parametrize(("gathers", "has_bias"), [(True, False), (False, True)])
def test_rows_are_multiplied_with_their_experts_weights(
    num_rows: int, in_features: int, out_features: int, gathers: bool, has_bias: bool, dtype: torch.dtype
) -> None:
    rows = sort_by_expert_reference(chosen_of(num_rows, 2, 3), 3)
    x = random(dtype, num_rows if gathers else 2 * num_rows, in_features)
    weight = random(dtype, 3, out_features, in_features, seed=2)
    bias = random(dtype, 3, out_features, seed=3) if has_bias else None
    reference = by_name("grouped_linear").reference

    out = kernel("grouped_linear", dtype)(x, weight, rows, gathers, bias)

    plain = reference(x, weight, rows, gathers, bias)
    exact = reference(x.double(), weight.double(), rows, gathers, None if bias is None else bias.double())
    assert out.dtype is dtype
    assert_as_near_as_torch(out, plain, exact, in_features)


def test_a_row_alone_has_the_bits_that_it_has_among_others_and_nan_stays_in_its_row() -> None:
    chosen, weight = torch.tensor([[0], [1], [0], [0]]), random(torch.bfloat16, 2, 48, 300)
    x = random(torch.bfloat16, 4, 300)
    spoiled = x.clone()
    spoiled[2, 7] = NAN
    multiply = kernel("grouped_linear", torch.bfloat16)
    rows, alone = (sort_by_expert_reference(one, 2) for one in (chosen, chosen[:1]))

    whole, with_nan = (multiply(one, weight, rows, True)[rows.places] for one in (x, spoiled))

    assert torch.equal(multiply(x[:1], weight, alone, True)[0], whole[0])
    assert with_nan[2].isnan().all()
    assert torch.equal(with_nan[[0, 1, 3]], whole[[0, 1, 3]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_chosen", "width"), [(1, 33), (3, 1500)])
def test_answers_are_summed_in_the_routers_order(num_chosen: int, width: int, dtype: torch.dtype) -> None:
    rows = sort_by_expert_reference(chosen_of(3, num_chosen, 4), 4)
    answers, shares = random(dtype, 3 * num_chosen, width), random(torch.float32, 3, num_chosen).abs()
    reference = by_name("combine_experts").reference

    out = kernel("combine_experts", dtype)(answers, rows.places, shares)

    plain, exact = (reference(one, rows.places, shares) for one in (answers, answers.double()))
    assert out.dtype is dtype
    assert_as_near_as_torch(out, plain, exact, num_chosen)


def test_adapters_of_experts_are_added_as_the_cpus_runs_of_rows_are() -> None:
    table = LoRATable({"module": PackedShape(24, (16, 8), torch.float32, num_experts=2)}, 3, max_rank=16)
    for slot in range(3):
        weights = {WeightsKey("module", expert): adapter(10 * slot + expert) for expert in range(2)}
        table.point(slot, table.describe(weights))
    batch = Segments.from_runs([some(3, 1, 0), some(2), some(4, 2)], block_rows=16, num_tiles=4)
    chosen = torch.tensor([[row % 2] for row in range(9)])
    rows, module = sort_by_expert_reference(chosen, 2), table.module("module")
    out, x = random(torch.float32, 9, 24), random(torch.float32, 9, 24, seed=3)
    expected = out.clone()

    kernel("lora_add")(out, x, kernel("expert_segments")(rows, batch), module)

    lora_add_reference(expected, x, segments_on_host(sort_on_host(chosen, 2), batch), module)
    torch.testing.assert_close(out, expected)


def adapter(seed: int) -> PackedLoRA:
    a, b_t = random(torch.float32, 32, 24, seed=seed), random(torch.float32, 16, 24, seed=seed + 1)
    parts = (
        LoRASlice(Slice(0, 16), Slice(0, 16), b_t[:, :16].contiguous()),
        LoRASlice(Slice(16, 24), Slice(16, 32), b_t[:, 16:].contiguous()),
    )
    return PackedLoRA(a, parts)

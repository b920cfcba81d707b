"""The Triton kernels on host memory, in the dtypes that run, against float32 and their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.lora.expand import lora_expand, lora_expand_reference
from kernels.lora.expand_norm import expand_norm, expand_norm_reference
from kernels.lora.reference import lora_add_reference
from kernels.lora.segments import Pass, Run, Segments
from kernels.lora.shrink import BLOCK_RANK, lora_shrink, lora_shrink_reference
from kernels.lora.tables import LoRATable, PackedShape, WeightsKey
from kernels.registry import resolve
from tests.unit.kernels.random_adapters import Case, in_double, make_case

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written holds NaN: what reads it is found out."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        return empty(*shape, **options).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", filled)


def _run(**arguments: Any) -> None:
    """Hold shrink, expand and both references against float64, and rows of no tile against what they were."""
    case = make_case(**arguments)
    before, exact = case.out.clone(), in_double(case)
    by_reference, by_torch = before.clone(), before.clone()

    planes = lora_shrink(case.x, case.module, case.lora_pass)
    lora_expand(case.out, planes, case.module, case.lora_pass)

    reference = lora_shrink_reference(case.x, case.module, case.lora_pass)
    _compare_written(case, planes, reference)
    lora_expand_reference(by_reference, reference, case.module, case.lora_pass)
    clean = make_case(**arguments, garbage=0.0)
    lora_add_reference(by_torch, case.x, case.segments, clean.module)
    dtype, in_features = case.x.dtype, case.x.shape[1]
    allowed = 2e-6 * in_features**0.5 if dtype is torch.float32 else 1.5 * _error(by_torch, exact)
    assert _error(case.out, exact) <= allowed
    assert _error(by_reference, exact) <= allowed
    idle = torch.ones(len(before), dtype=torch.bool)
    for run in case.lora_pass.runs:
        idle[run.start : run.end] = False
    assert torch.equal(case.out[idle], before[idle])


def _error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


def _compare_written(case: Case, planes: Tensor, reference: Tensor) -> None:
    """Compare whole blocks of ranks: those past an adapter's own must be zero, not what lies behind A."""
    for start, end, slot, expert in case.lora_pass.table.tolist():
        weights = case.module.weights(slot, expert) if slot >= 0 else None
        for part in weights.slices if weights is not None else ():
            place, written = case.module.place(part), -(-part.num_ranks // BLOCK_RANK) * BLOCK_RANK
            torch.testing.assert_close(
                planes[:, place, start:end, :written],
                reference[:, place, start:end, :written],
                atol=1e-4,
                rtol=1e-4,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 5, 8, 15, 16, 17, 32, 33, 64, 100, 128, 512])
def test_behaviour_03_any_rank_equals_the_dense_product_beside_garbage_behind_it(
    rank: int, dtype: torch.dtype
) -> None:
    _run(ranks=[[rank, 4]], slots=[0] * 3 + [1] * 2, in_features=64, slice_widths=[48], dtype=dtype)


def test_behaviour_03_128_adapters_of_three_slices_in_one_batch() -> None:
    _run(
        ranks=[[slot % 20 for slot in range(128)], [4] * 128, [8, 0] * 64],
        slots=[-1] * 3 + [slot for slot in range(127, 0, -5) for _ in range(slot % 3)],
        in_features=24,
        slice_widths=[16, 8, 8],
        dtype=torch.float32,
    )


@pytest.mark.parametrize("in_features", [1, 33, 129, 513, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_widths_in_and_out_are_masked(in_features: int, dtype: torch.dtype) -> None:
    _run(ranks=[[8], [8]], slots=[0] * 7, in_features=in_features, slice_widths=[131, 3], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_rows", "rank"), [(16, 40), (64, 40)])
def test_many_splits_of_a_wide_input_add_up(block_rows: int, rank: int, dtype: torch.dtype) -> None:
    _run(
        ranks=[[rank, 3], [16, rank]],
        slots=[-1] + [0] * 17 + [1] * 2,
        in_features=5 * 512 + 272,  # six planes, which are read by fours
        slice_widths=[48, 16],
        dtype=dtype,
        block_rows=block_rows,
    )


@pytest.mark.parametrize("block_rows", [16, 64])
def test_64_adapters_of_every_rank_up_to_64(block_rows: int) -> None:
    _run(
        ranks=[list(range(1, 65))],
        slots=list(range(64)),
        in_features=40,
        slice_widths=[16],
        dtype=torch.bfloat16,
        block_rows=block_rows,
    )


def test_slices_of_unequal_width_and_rank_land_in_their_own_columns() -> None:
    _run(
        ranks=[[16, 4], [8, 64], [1, 20]],
        slots=[0] * 5 + [-1] * 3 + [1] * 6,
        in_features=40,
        slice_widths=[160, 16, 24],
        dtype=torch.float32,
    )


@pytest.mark.parametrize("block_rows", [16, 32, 64])
@pytest.mark.parametrize("num_rows", [1, 16, 17, 47, 130])
def test_row_counts_that_are_no_multiple_of_the_block(num_rows: int, block_rows: int) -> None:
    slots = [2] * (num_rows // 2) + [0] * (num_rows - num_rows // 2)
    _run(
        ranks=[[8, 8, 24]],
        slots=slots,
        in_features=32,
        slice_widths=[32],
        dtype=torch.float32,
        block_rows=block_rows,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_is_multiplied_by_its_own_scale(dtype: torch.dtype) -> None:
    _run(
        ranks=[[8, 20, 4], [16, 8, 0]],
        slots=[0] * 3 + [1] * 20 + [-1] * 2 + [2] * 4,
        scales=[0.5, 1.0, 2.0, *([-2.0, 0.0] * 10), 1.0, 1.0, 1.0, 0.5, 3.0, 1.0],
        in_features=40,
        slice_widths=[48, 16],
        dtype=dtype,
    )


def test_adapters_without_a_sub_module_leave_its_columns_alone() -> None:
    _run(
        ranks=[[8, 0], [0, 0], [4, 8]],
        slots=[0] * 4 + [1] * 4,
        in_features=32,
        slice_widths=[32, 16, 16],
        dtype=torch.float32,
    )


def test_behaviour_03_a_batch_of_base_rows_only_is_left_as_it_was() -> None:
    case = make_case(ranks=[[8]], slots=[-1] * 20, in_features=32, slice_widths=[32], dtype=torch.float32)
    before = case.out.clone()

    lora_expand(case.out, lora_shrink(case.x, case.module, case.lora_pass), case.module, case.lora_pass)

    assert torch.equal(case.out, before)


def test_behaviour_28_fixed_addresses_serve_whatever_the_tables_hold_right_after_slots_change() -> None:
    """A captured graph keeps addresses and grids; that it replays on a device is not shown here."""
    batches = [
        {"ranks": [[20, 3, 40]], "slots": [0] * 5 + [1] * 9 + [-1] * 6},
        {"ranks": [[40, 16, 1]], "slots": [2] * 20},  # every slot changes hands, one adapter in use
        {"ranks": [[40, 16, 1]], "slots": [-1] * 20},  # none
        {"ranks": [[8, 40, 7]], "slots": [-1] * 2 + [0] * 3 + [1] * 7 + [2] * 8},  # all
    ]
    cases = [
        make_case(in_features=24, slice_widths=[16], dtype=torch.float32, max_rank=48, **batch)  # type: ignore[arg-type]
        for batch in batches
    ]
    table, static_pass, x, out = cases[0].one.table, cases[0].lora_pass, cases[0].x, cases[0].out
    static = [table.addresses, static_pass.table, static_pass.scales, x, out]
    addresses = [tensor.data_ptr() for tensor in static]

    for case in cases:
        for slot in range(3):
            table.point(slot, table.describe(case.one.table.adapter(slot)))
        x.copy_(case.x)
        out.copy_(case.out)
        static_pass.table.copy_(case.lora_pass.table)
        static_pass.scales.copy_(case.lora_pass.scales)
        lora_expand(out, lora_shrink(x, cases[0].module, static_pass), cases[0].module, static_pass)
        torch.testing.assert_close(out, case.expected, atol=1e-4, rtol=1e-4)

    assert [tensor.data_ptr() for tensor in static] == addresses


def test_a_row_is_the_same_bits_whatever_its_neighbours() -> None:
    alone = make_case(ranks=[[24, 8]], slots=[0], in_features=1300, slice_widths=[64], dtype=torch.float32)
    among = make_case(
        ranks=[[24, 8]], slots=[0] * 19 + [1] * 4, in_features=1300, slice_widths=[64], dtype=torch.float32
    )
    module, x, out = among.module, among.x, among.out

    whole = out.clone()
    lora_expand(whole, lora_shrink(x, module, among.lora_pass), module, among.lora_pass)
    single = out[:1].clone()
    lora_expand(single, lora_shrink(x[:1].contiguous(), module, alone.lora_pass), module, alone.lora_pass)

    assert torch.equal(whole[:1], single)


def test_one_adapters_nan_stays_in_its_own_rows() -> None:
    case = make_case(
        ranks=[[8, 8]], slots=[0] * 5 + [1] * 5, in_features=32, slice_widths=[32], dtype=torch.float32
    )
    poisoned = case.module.weights(0)
    assert poisoned is not None
    poisoned.a.fill_(float("nan"))

    lora_expand(case.out, lora_shrink(case.x, case.module, case.lora_pass), case.module, case.lora_pass)

    assert torch.isnan(case.out[:5]).all()
    torch.testing.assert_close(case.out[5:], case.expected[5:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_dora_finish_the_rows_of_their_adapter(dtype: torch.dtype) -> None:
    _run(
        ranks=[[8, 20, 4], [16, 8, 0]],
        slots=[0] * 3 + [1] * 4 + [-1] * 2 + [2] * 2,
        scales=[0.5, 1.0, -1.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.25, 1.0],
        in_features=40,
        slice_widths=[48, 16],
        dtype=dtype,
        has_extras=True,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_registered_op_equals_the_one_in_plain_torch(dtype: torch.dtype) -> None:
    case = make_case(
        ranks=[[8, 20], [16, 0]],
        slots=[0] * 3 + [-1] + [1] * 4,
        in_features=40,
        slice_widths=[48, 16],
        dtype=dtype,
        has_extras=True,
        garbage=0.0,
    )
    expected = case.out.clone()

    resolve("lora_add", "cpu", dtype, "triton")(case.out, case.x, case.segments, case.module)

    resolve("lora_add", "cpu", dtype, "torch")(expected, case.x, case.segments, case.module)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(case.out, expected, atol=tolerance, rtol=tolerance)


def test_experts_read_their_own_entries() -> None:
    shape = PackedShape(32, (16, 16), torch.float32, num_experts=2)
    table = LoRATable({"other": PackedShape(8, (4,), torch.float32), "experts": shape}, 2, max_rank=16)
    adapters = [
        make_case(ranks=[[rank]] * 2, slots=[0], in_features=32, slice_widths=[16, 16], dtype=torch.float32)
        for rank in (4, 8)
    ]
    weights = [case.module.weights(0) for case in adapters]
    held = {WeightsKey("experts", expert): one for expert, one in enumerate(weights) if one is not None}
    table.point(1, table.describe(held))
    x, out, expected = torch.randn(5, 32), torch.zeros(5, 32), torch.zeros(5, 32)
    runs = [Run(0, 2, 1, 1), Run(2, 4, 1, 0), Run(4, 5, 0, 1)]
    segments = Segments(5, (Pass.of(runs, np.array([1, 2, 1, 0.5, 1], np.float32), block_rows=16),))

    resolve("lora_add", "cpu", torch.float32, "triton")(out, x, segments, table.module("experts"))

    for row, expert, scale in ((0, 1, 1.0), (1, 1, 2.0), (2, 0, 1.0), (3, 0, 0.5)):
        one = weights[expert]
        assert one is not None
        for part in one.slices:
            a = one.a[part.rank.start : part.rank.start + part.num_ranks]
            delta = scale * (x[row] @ a.T @ part.b_t[: part.num_ranks])
            expected[row, part.out.start : part.out.end] = delta
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ranks", "in_features", "width"),
    [
        pytest.param([16, 5], 40, 48, id="one block of ranks"),
        pytest.param([40, 64], 40, 131, id="more than one, an odd width"),
        pytest.param([3, 0], 3 * 512, 64, id="three planes, one adapter lacks the module"),
    ],
)
def test_expanded_within_a_norm_is_expanded_then_added_and_normed(
    ranks: list[int], in_features: int, width: int, dtype: torch.dtype
) -> None:
    case = make_case(
        ranks=[ranks],
        slots=[0] * 3 + [-1] + [1] * 2,
        scales=[0.5, 1.0, -2.0, 1.0, 1.0, 0.0],
        in_features=in_features,
        slice_widths=[width],
        dtype=dtype,
        has_extras=True,
    )
    generator = torch.Generator().manual_seed(3)
    residual = torch.randn(case.out.shape, generator=generator).to(dtype)
    weight, delta = torch.rand(width, generator=generator), case.out.clone()
    by_reference = residual.clone()
    planes = lora_shrink(case.x, case.module, case.lora_pass)
    written = torch.nan_to_num(planes, nan=0.0)

    normed = expand_norm(residual, case.out, planes, case.module, case.lora_pass, weight, 1e-5)

    expected = expand_norm_reference(by_reference, delta, written, case.module, case.lora_pass, weight, 1e-5)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(residual, by_reference, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(normed, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(case.out, delta)

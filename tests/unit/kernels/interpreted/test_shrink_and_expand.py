from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.lora.expand import lora_expand, lora_expand_reference
from kernels.lora.pages import PAGE_RANKS
from kernels.lora.segments import Tiles
from kernels.lora.shrink import lora_shrink, lora_shrink_reference
from tests.unit.kernels.random_pages import Case, make_case

# Triton's interpreter computes tl.dot on bfloat16 wrongly, so bfloat16 is compiled only.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}


def _run(case: Case) -> None:
    tolerance = TOLERANCES[case.x.dtype]
    before = case.out.clone()

    shrunk = lora_shrink(case.x, case.pages, case.tiles)
    by_kernel = case.out.clone()
    lora_expand(by_kernel, shrunk, case.pages, case.tiles)

    reference = lora_shrink_reference(case.x, case.pages, case.tiles)
    _compare_written(case, shrunk, reference, tolerance)
    by_reference = before.clone()
    lora_expand_reference(by_reference, reference, case.pages, case.tiles)
    torch.testing.assert_close(by_reference, case.expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(by_kernel, case.expected, atol=tolerance, rtol=tolerance)


def _compare_written(case: Case, shrunk: Tensor, reference: Tensor, tolerance: float) -> None:
    """Compare whole pages: ranks past an adapter's own must be zero, not what the page held before."""
    tiles = case.tiles
    for start, end, slot in zip(
        tiles.starts.tolist(), tiles.ends.tolist(), tiles.slots.tolist(), strict=True
    ):
        for part in range(case.pages.num_slices if slot >= 0 else 0):
            written = -(-int(case.pages.ranks[part, slot]) // PAGE_RANKS) * PAGE_RANKS
            torch.testing.assert_close(
                shrunk[part, start:end, :written],
                reference[part, start:end, :written],
                atol=tolerance,
                rtol=tolerance,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rank", [1, 2, 5, 8, 15, 16, 17, 32, 33, 64, 100, 128, 512])
def test_behaviour_03_any_rank_equals_the_dense_product_beside_garbage_in_unused_pages(
    rank: int, dtype: torch.dtype
) -> None:
    case = make_case(
        ranks=[[rank, 4]], slots=[0] * 3 + [1] * 2, in_features=64, slice_widths=[48], dtype=dtype
    )

    _run(case)


def test_behaviour_03_128_adapters_of_three_slices_in_one_batch() -> None:
    case = make_case(
        ranks=[[slot % 20 for slot in range(128)], [4] * 128, [8, 0] * 64],
        slots=[-1] * 3 + [slot for slot in range(127, 0, -5) for _ in range(slot % 3)],
        in_features=24,
        slice_widths=[16, 8, 8],
        dtype=torch.float32,
    )

    _run(case)


@pytest.mark.parametrize("in_features", [33, 129, 2049])
def test_odd_widths_in_and_out_are_masked(in_features: int) -> None:
    case = make_case(
        ranks=[[8], [8]], slots=[0] * 7, in_features=in_features, slice_widths=[131, 3], dtype=torch.float32
    )

    _run(case)


def test_slices_of_unequal_width_and_rank_land_in_their_own_columns() -> None:
    case = make_case(
        ranks=[[16, 4], [8, 64], [1, 20]],
        slots=[0] * 5 + [-1] * 3 + [1] * 6,
        in_features=40,
        slice_widths=[160, 16, 24],
        dtype=torch.float32,
    )

    _run(case)


@pytest.mark.parametrize("block_rows", [16, 32])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 31, 47, 70])
def test_row_counts_that_are_no_multiple_of_the_block(num_rows: int, block_rows: int) -> None:
    slots = [2] * (num_rows // 2) + [0] * (num_rows - num_rows // 2)
    case = make_case(
        ranks=[[8, 8, 24]],
        slots=slots,
        in_features=32,
        slice_widths=[32],
        dtype=torch.float32,
        block_rows=block_rows,
    )

    _run(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_scale_multiplies_the_rows_of_its_run_only(dtype: torch.dtype) -> None:
    case = make_case(
        ranks=[[8, 20, 4], [16, 8, 0]],
        slots=[0] * 3 + [1] * 20 + [-1] * 2 + [2] * 4,
        scales=[0.5, -2.0, 1.0],
        in_features=40,
        slice_widths=[48, 16],
        dtype=dtype,
    )

    _run(case)


def test_adapters_without_a_sub_module_leave_its_columns_alone() -> None:
    case = make_case(
        ranks=[[8, 0], [0, 0], [4, 8]],
        slots=[0] * 4 + [1] * 4,
        in_features=32,
        slice_widths=[32, 16, 16],
        dtype=torch.float32,
    )

    _run(case)


def test_behaviour_03_a_batch_of_base_rows_only_is_left_as_it_was() -> None:
    case = make_case(ranks=[[8]], slots=[-1] * 20, in_features=32, slice_widths=[32], dtype=torch.float32)
    before = case.out.clone()

    lora_expand(case.out, lora_shrink(case.x, case.pages, case.tiles), case.pages, case.tiles)

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
        make_case(in_features=24, slice_widths=[16], dtype=torch.float32, **batch)  # type: ignore[arg-type]
        for batch in batches
    ]
    pages, tiles, x = cases[0].pages, cases[0].tiles, cases[0].x
    static = [pages.a_pool, pages.b_pool, pages.a_pages, pages.b_offsets, pages.ranks]
    static += [tiles.starts, tiles.ends, tiles.slots, tiles.scales, x]
    addresses = [tensor.data_ptr() for tensor in static]

    for case in cases:
        new = case.pages
        for old, tensor in zip(static, (new.a_pool, new.b_pool, new.a_pages, new.b_offsets), strict=False):
            old.copy_(tensor)
        pages.ranks.copy_(new.ranks)
        x.copy_(case.x)
        host = case.tiles
        tiles.update(
            Tiles(*(column.tolist() for column in (host.starts, host.ends, host.slots, host.scales)))
        )
        out = case.out.clone()
        lora_expand(out, lora_shrink(x, pages, tiles), pages, tiles)
        torch.testing.assert_close(out, case.expected, atol=1e-4, rtol=1e-4)

    assert [tensor.data_ptr() for tensor in static] == addresses


def test_a_row_is_the_same_bits_whatever_its_neighbours() -> None:
    alone = make_case(ranks=[[24, 8]], slots=[0], in_features=96, slice_widths=[64], dtype=torch.float32)
    among = make_case(
        ranks=[[24, 8]], slots=[0] * 19 + [1] * 4, in_features=96, slice_widths=[64], dtype=torch.float32
    )
    pages, x, out = among.pages, among.x, among.out

    whole = out.clone()
    lora_expand(whole, lora_shrink(x, pages, among.tiles), pages, among.tiles)
    single = out[:1].clone()
    lora_expand(single, lora_shrink(x[:1].contiguous(), pages, alone.tiles), pages, alone.tiles)

    assert torch.equal(whole[:1], single)


def test_one_adapters_nan_stays_in_its_own_rows() -> None:
    case = make_case(
        ranks=[[8, 8]], slots=[0] * 5 + [1] * 5, in_features=32, slice_widths=[32], dtype=torch.float32
    )
    case.pages.a_pool[case.pages.a_pages[0, 0, 0]] = float("nan")

    lora_expand(case.out, lora_shrink(case.x, case.pages, case.tiles), case.pages, case.tiles)

    assert torch.isnan(case.out[:5]).all()
    torch.testing.assert_close(case.out[5:], case.expected[5:], atol=1e-4, rtol=1e-4)

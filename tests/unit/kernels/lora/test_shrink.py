from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.lora.pages import BLOCK_ROWS
from kernels.lora.segments import Pass
from kernels.lora.shrink import BLOCK_IN, NUM_WARPS, lora_shrink, lora_shrink_reference, shrink_kernel
from tests.unit.kernels.compiled import compile_kernel
from tests.unit.kernels.random_pages import Case, make_case

TABLES = {
    "shrunk_ptr": "*fp32",
    "a_pages_ptr": "*i32",
    "ranks_ptr": "*i32",
    "tile_starts_ptr": "*i32",
    "tile_ends_ptr": "*i32",
    "tile_slots_ptr": "*i32",
    "tile_scales_ptr": "*fp32",
}


@pytest.fixture
def case() -> Case:
    return make_case(
        ranks=[[20, 3]],
        slots=[0] * 3 + [1] * 3,
        scales=[1.0, 0.5],
        in_features=24,
        slice_widths=[8],
        dtype=torch.float32,
    )


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("arch", [80, 90])
def test_it_compiles_without_spilling_registers(
    arch: int, dtype: str, block_rows: int, tmp_path: Path
) -> None:
    compiled = compile_kernel(
        shrink_kernel,
        {**TABLES, "x_ptr": f"*{dtype}", "a_pool_ptr": f"*{dtype}"},
        {"PAGE": 16, "BLOCK_M": block_rows, "BLOCK_K": BLOCK_IN},
        arch=arch,
        num_warps=NUM_WARPS,
        tmp_path=tmp_path,
    )

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.stack_bytes == 0


def test_the_reference_is_the_dense_product_with_the_rows_own_adapter(case: Case) -> None:
    pages = case.pages.a_pages
    a = case.pages.a_pool[pages[0, 0].long()].reshape(-1, 24)[:20]

    shrunk = lora_shrink_reference(case.x, case.pages, case.tiles)

    torch.testing.assert_close(shrunk[0, :3, :20], case.x[:3] @ a.T)
    assert shrunk[0, 3:, 3:].abs().sum() == 0


def test_x_of_another_width_is_refused_with_both_widths(case: Case) -> None:
    with pytest.raises(ValueError, match=r"x is \(6, 25\).*24 columns"):
        lora_shrink(torch.zeros(6, 25), case.pages, case.tiles)


def test_strided_x_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"strides \(48, 2\)"):
        lora_shrink(torch.zeros(6, 48)[:, ::2], case.pages, case.tiles)


def test_x_of_another_dtype_is_refused_with_both_dtypes(case: Case) -> None:
    with pytest.raises(ValueError, match=r"x is torch.float16.*A is torch.float32"):
        lora_shrink(case.x.half(), case.pages, case.tiles)


def test_a_block_of_a_size_the_kernel_was_not_compiled_for_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="block_rows is 64; give one of"):
        lora_shrink(case.x, case.pages, replace(case.tiles, block_rows=64))


def test_tiles_that_do_not_fill_a_grid_are_refused_with_both_numbers(case: Case) -> None:
    with pytest.raises(ValueError, match=r"0 tiles for a grid of 2; cut them with pad_to=2"):
        case.tiles.update(Pass.of(()).tiles(16))


def test_ranks_of_a_wrong_type_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"ranks is \(1, 2\) torch.int64"):
        lora_shrink(case.x, replace(case.pages, ranks=case.pages.ranks.long()), case.tiles)


def test_pages_of_another_height_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"a_pool is \(4, 8, 24\)"):
        lora_shrink(case.x, replace(case.pages, a_pool=case.pages.a_pool[:, :8].contiguous()), case.tiles)

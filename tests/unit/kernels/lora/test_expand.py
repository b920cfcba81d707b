from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.lora.expand import BLOCK_OUT, NUM_WARPS, expand_kernel, lora_expand, lora_expand_reference
from kernels.lora.pages import BLOCK_ROWS
from kernels.lora.shrink import lora_shrink_reference
from tests.unit.kernels.compiled import compile_kernel
from tests.unit.kernels.random_pages import Case, make_case

TABLES = {
    "shrunk_ptr": "*fp32",
    "b_offsets_ptr": "*i64",
    "ranks_ptr": "*i32",
    "slice_starts_ptr": "*i32",
    "tile_starts_ptr": "*i32",
    "tile_ends_ptr": "*i32",
    "tile_slots_ptr": "*i32",
}


@pytest.fixture
def case() -> Case:
    return make_case(
        ranks=[[20, 3], [8, 0]],
        slots=[0] * 3 + [-1] * 2 + [1] * 3,
        in_features=24,
        slice_widths=[8, 12],
        dtype=torch.float32,
    )


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("arch", [80, 90])
def test_it_compiles_without_spilling_registers(
    arch: int, dtype: str, block_rows: int, tmp_path: Path
) -> None:
    compiled = compile_kernel(
        expand_kernel,
        {**TABLES, "out_ptr": f"*{dtype}", "b_pool_ptr": f"*{dtype}"},
        {"PAGE": 16, "BLOCK_M": block_rows, "BLOCK_N": BLOCK_OUT},
        arch=arch,
        num_warps=NUM_WARPS,
        tmp_path=tmp_path,
    )

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.stack_bytes == 0


def test_the_references_together_are_the_dense_low_rank_product(case: Case) -> None:
    lora_expand_reference(
        case.out, lora_shrink_reference(case.x, case.pages, case.tiles), case.pages, case.tiles
    )

    torch.testing.assert_close(case.out, case.expected)


def test_shrunk_rows_of_another_shape_are_refused_with_the_right_one(case: Case) -> None:
    with pytest.raises(ValueError, match=r"shrunk is \(2, 7, 32\).*\(2, 8, 32\) float32"):
        lora_expand(case.out, torch.zeros(2, 7, 32), case.pages, case.tiles)


def test_a_strided_output_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"out is .* with strides \(40, 2\)"):
        lora_expand(torch.zeros(8, 40)[:, ::2], torch.zeros(2, 8, 32), case.pages, case.tiles)


def test_b_of_another_dtype_than_a_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"b_pool is .* torch.float16"):
        lora_expand(
            case.out, torch.zeros(2, 8, 32), replace(case.pages, b_pool=case.pages.b_pool.half()), case.tiles
        )

"""The plain product, what the kernel's launches compile to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.experts import triton_grouped_linear
from kernels.experts.grouped_linear import StackedLinear, grouped_linear_reference
from kernels.experts.sort_by_expert import sort_by_expert_reference
from kernels.experts.triton_grouped_linear import grouped_linear_kernel, grouped_linear_triton
from kernels.linear.linear import PLAIN
from tests.unit.kernels.compiled import ARCHITECTURES, MAX_SHARED_BYTES, Recorder, compile_launch, launch_on
from tests.unit.kernels.experts.device_rows import device_rows

MOST_SHARED_BYTES = {90: 227 << 10, 100: 227 << 10}


@pytest.mark.parametrize(
    ("arch", "dtype", "num_rows", "in_features", "gathers", "has_bias", "max_registers"),
    [
        *((arch, torch.bfloat16, 64, 2048, True, False, 96) for arch in ARCHITECTURES),
        *((arch, torch.bfloat16, 2048, 2048, True, False, 224) for arch in ARCHITECTURES),
        (90, torch.bfloat16, 1, 768, False, False, 64),
        (90, torch.bfloat16, 256, 768, False, False, 144),
        (90, torch.float16, 512, 2048, True, False, 144),
        (90, torch.float32, 2048, 768, False, False, 128),
        (90, torch.bfloat16, 64, 33, True, False, 255),
        (90, torch.bfloat16, 64, 2880, True, True, 96),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words_where_rows_are_aligned(
    arch: int,
    dtype: torch.dtype,
    num_rows: int,
    in_features: int,
    gathers: bool,
    has_bias: bool,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_grouped_linear, "grouped_linear_kernel", recorder)
    rows = device_rows(num_rows, 8, 128)
    x = torch.empty(num_rows if gathers else rows.num_rows, in_features, dtype=dtype)
    bias = torch.empty(128, 1536, dtype=dtype) if has_bias else None
    grouped_linear_triton(x, torch.empty(128, 1536, in_features, dtype=dtype), rows, gathers, bias)

    compiled = compile_launch(grouped_linear_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.shared_bytes <= MOST_SHARED_BYTES.get(arch, MAX_SHARED_BYTES)
    assert in_features == 33 or compiled.num_narrow == 0
    assert compiled.read_before_wait == (None if arch < 90 else set())


def test_few_tiles_have_programs_enough_and_more_of_them_sum_in_the_same_order() -> None:
    weight = torch.empty(128, 1536, 2048, dtype=torch.bfloat16, device="meta")

    few, many = (triton_grouped_linear.block_for(16, num_tiles, weight) for num_tiles in (8, 64))

    assert (few.columns, many.columns) == (32, 64)
    assert few.row_bytes == many.row_bytes


def test_each_row_is_multiplied_with_its_experts_weight() -> None:
    rows = sort_by_expert_reference(torch.tensor([[1], [0], [1]]), 2)
    x, weight = torch.randn(3, 4), torch.randn(2, 5, 4)

    out = grouped_linear_reference(x, weight, rows, True)

    for row, expert in enumerate((1, 0, 1)):
        torch.testing.assert_close(out[rows.places[row]], weight[expert] @ x[row])


def test_a_stack_is_a_linear_module_for_each_expert_and_holds_no_copy() -> None:
    weight, bias = torch.randn(3, 4, 8), torch.randn(3, 4)
    stack = StackedLinear(weight, bias, kernel=PLAIN, multiply=grouped_linear_reference)

    assert stack.nbytes == sum(one.nbytes for one in stack) == 3 * 4 * (8 + 1) * 4
    assert len(stack) == 3
    assert torch.equal(stack[2](torch.zeros(1, 8))[0], bias[2])
    assert stack[2].dense().data_ptr() == weight[2].data_ptr()


def test_what_does_not_fit_together_is_refused_with_the_values() -> None:
    rows, weight = device_rows(4, 2, 3), torch.zeros(3, 5, 16)

    with pytest.raises(ValueError, match=r"x is \(4, 16\).*matrix of 8 rows and 16 columns"):
        grouped_linear_triton(torch.zeros(4, 16), weight, rows, False)
    with pytest.raises(ValueError, match=r"weight is \(2, 5, 16\).*stack of 3 matrices"):
        grouped_linear_triton(torch.zeros(4, 16), weight[:2], rows, True)
    with pytest.raises(ValueError, match=r"bias is \(3, 4\).*must be contiguous \(3, 5\)"):
        grouped_linear_triton(torch.zeros(4, 16), weight, rows, True, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"x is torch.float16 on cpu, the weight torch.float32"):
        grouped_linear_triton(torch.zeros(4, 16).half(), weight, rows, True)

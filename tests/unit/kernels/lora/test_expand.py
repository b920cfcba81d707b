from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.lora import expand
from kernels.lora.expand import expand_kernel, lora_expand, lora_expand_reference
from kernels.lora.shrink import lora_shrink_reference
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch
from tests.unit.kernels.random_adapters import Case, make_case


@pytest.fixture
def case() -> Case:
    return make_case(
        ranks=[[20, 3], [8, 0]],
        slots=[0] * 3 + [-1] * 2 + [1] * 3,
        in_features=24,
        slice_widths=[8, 12],
        dtype=torch.float32,
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "block_rows", "widths", "has_extras", "max_registers"),
    [
        (torch.bfloat16, 16, [4096, 1024, 1024], False, 64),
        (torch.bfloat16, 16, [4096, 1024, 1024], True, 96),
        (torch.float16, 32, [4096, 1024, 1024], False, 128),
        (torch.float32, 16, [4096, 1024, 1024], True, 128),
        (torch.bfloat16, 16, [131, 3], True, 255),
    ],
)
def test_what_is_launched_compiles_without_spills_and_moves_whole_words_where_slices_are_aligned(
    arch: int,
    dtype: torch.dtype,
    block_rows: int,
    widths: list[int],
    has_extras: bool,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(
        ranks=[[8, 16]] * len(widths),
        slots=[0, 1],
        in_features=32,
        slice_widths=widths,
        dtype=dtype,
        block_rows=block_rows,
    )
    recorder = Recorder()
    monkeypatch.setattr(expand, "expand_kernel", recorder)
    shrunk = torch.zeros(len(widths), 2, 16)
    lora_expand(case.out, shrunk, case.module, case.lora_pass, has_extras=has_extras)

    compiled = compile_launch(expand_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert widths == [131, 3] or compiled.num_narrow == 0


@pytest.mark.parametrize("has_extras", [False, True])
def test_the_references_together_are_the_dense_low_rank_product(has_extras: bool) -> None:
    case = make_case(
        ranks=[[20, 3], [8, 0]],
        slots=[0] * 3 + [-1] * 2 + [1] * 3,
        scales=[1.0, 0.5, 2.0, 1.0, 1.0, -1.0, 0.0, 0.25],
        in_features=24,
        slice_widths=[8, 12],
        dtype=torch.float32,
        has_extras=has_extras,
    )

    shrunk = lora_shrink_reference(case.x, case.module, case.lora_pass)
    lora_expand_reference(case.out, shrunk, case.module, case.lora_pass)

    torch.testing.assert_close(case.out, case.expected)


def test_shrunk_rows_of_another_shape_are_refused_with_the_right_one(case: Case) -> None:
    with pytest.raises(ValueError, match=r"shrunk is \(2, 7, 32\).*\(2, 8, 32\) float32"):
        lora_expand(case.out, torch.zeros(2, 7, 32), case.module, case.lora_pass)


def test_a_strided_output_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"out is .* with strides \(40, 2\)"):
        lora_expand(torch.zeros(8, 40)[:, ::2], torch.zeros(2, 8, 32), case.module, case.lora_pass)


def test_an_output_of_another_dtype_than_the_adapters_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"out is .* torch.float16 .*20 columns of torch.float32"):
        lora_expand(case.out.half(), torch.zeros(2, 8, 32), case.module, case.lora_pass)

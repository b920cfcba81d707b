from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.lora import expand
from kernels.lora.expand import expand_kernel, lora_expand, lora_expand_reference
from kernels.lora.shrink import lora_shrink_reference, planes_shape
from tests.unit.kernels.compiled import ARCHITECTURES, MAX_SHARED_BYTES, Recorder, compile_launch, launch_on
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


@pytest.mark.parametrize(
    ("arch", "dtype", "block_rows", "max_rank", "in_features", "widths", "has_extras", "max_registers"),
    [
        *((arch, torch.bfloat16, 16, 16, 4096, [4096, 1024, 1024], True, 96) for arch in ARCHITECTURES),
        *((arch, torch.bfloat16, 16, 16, 4096, [14336, 14336], True, 168) for arch in ARCHITECTURES),
        *((arch, torch.bfloat16, 64, 64, 4096, [14336, 14336], True, 232) for arch in ARCHITECTURES),
        (90, torch.bfloat16, 16, 16, 4096, [4096, 1024, 1024], False, 96),
        (90, torch.bfloat16, 16, 16, 14336, [4096], True, 128),
        (90, torch.bfloat16, 16, 64, 4096, [14336, 14336], True, 144),
        (90, torch.float16, 32, 64, 4096, [4096, 1024, 1024], True, 128),
        (90, torch.bfloat16, 64, 16, 14336, [4096], True, 232),
        (90, torch.float32, 16, 64, 4096, [128256], True, 128),
        (90, torch.float32, 64, 64, 4096, [4096, 1024, 1024], True, 128),
        (90, torch.bfloat16, 16, 16, 64, [131, 3], True, 255),
    ],
)
def test_what_is_launched_compiles_without_spills_and_moves_whole_words_where_slices_are_aligned(
    arch: int,
    dtype: torch.dtype,
    block_rows: int,
    max_rank: int,
    in_features: int,
    widths: list[int],
    has_extras: bool,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(
        ranks=[[8, 16]] * len(widths),
        slots=[0, 1],
        in_features=in_features,
        slice_widths=widths,
        dtype=dtype,
        block_rows=block_rows,
        max_rank=max_rank,
    )
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(expand, "expand_kernel", recorder)
    planes = torch.zeros(planes_shape(2, case.module))
    lora_expand(case.out, planes, case.module, case.lora_pass, has_extras=has_extras)

    compiled = compile_launch(expand_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.shared_bytes <= MAX_SHARED_BYTES
    assert widths == [131, 3] or compiled.num_narrow == 0
    looked_up = {"tiles_ptr", "table_ptr", "columns_ptr"}
    assert compiled.read_before_wait == (None if arch < 90 else looked_up)


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


def test_planes_of_another_shape_are_refused_with_the_right_one(case: Case) -> None:
    with pytest.raises(ValueError, match=r"planes are \(1, 2, 7, 32\).*\(1, 2, 8, 32\) float32"):
        lora_expand(case.out, torch.zeros(1, 2, 7, 32), case.module, case.lora_pass)


def test_a_strided_output_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"out is .* with strides \(40, 2\)"):
        lora_expand(torch.zeros(8, 40)[:, ::2], torch.zeros(1, 2, 8, 32), case.module, case.lora_pass)


def test_an_output_of_another_dtype_than_the_adapters_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"out is .* torch.float16 .*20 columns of torch.float32"):
        lora_expand(case.out.half(), torch.zeros(1, 2, 8, 32), case.module, case.lora_pass)

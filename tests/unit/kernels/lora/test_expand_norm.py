from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.lora import expand_norm as module
from kernels.lora.expand_norm import expand_norm, expand_norm_kernel, expands_into_norm
from kernels.lora.segments import Segments
from kernels.lora.shrink import planes_shape
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on
from tests.unit.kernels.random_adapters import Case, make_case


def case_of(width: int, dtype: torch.dtype = torch.float32, max_rank: int | None = None) -> Case:
    return make_case(
        ranks=[[8, 16]], slots=[0, 1], in_features=24, slice_widths=[width], dtype=dtype, max_rank=max_rank
    )


def run(case: Case) -> None:
    planes = torch.zeros(planes_shape(2, case.module))
    weight = torch.ones(case.out.shape[1])
    expand_norm(case.out.clone(), case.out, planes, case.module, case.lora_pass, weight, 1e-5)


@pytest.mark.parametrize(
    ("arch", "dtype", "width"),
    [
        *((arch, torch.bfloat16, 4096) for arch in ARCHITECTURES),
        (90, torch.bfloat16, 576),
        (90, torch.float32, 4096),
    ],
)
def test_what_is_launched_compiles_without_spills_for_one_program_of_a_multiprocessor(
    arch: int, dtype: torch.dtype, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(module, "expand_norm_kernel", recorder)
    run(case_of(width, dtype, max_rank=64))

    compiled = compile_launch(expand_norm_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= 128
    assert compiled.num_narrow == 0
    looked_up = {"weight_ptr", "slots_ptr", "table_ptr"}
    assert compiled.read_before_wait == (None if arch < 90 else looked_up)


def test_a_pass_without_the_slots_of_its_rows_is_refused() -> None:
    case = case_of(32)
    without = replace(case, lora_pass=replace(case.lora_pass, row_slots=None))

    with pytest.raises(ValueError, match=r"has None slots of rows; it needs one for each of 2.*block_rows"):
        run(without)


def test_few_rows_of_one_pass_are_expanded_within_the_norm_and_others_are_not() -> None:
    one, other, wide = case_of(32), case_of(32, max_rank=128), case_of(5120)
    slices = make_case(
        ranks=[[8], [8]], slots=[0], in_features=24, slice_widths=[16, 16], dtype=torch.float32
    )
    mix = Segments(2, one.segments.passes * 2)
    uncut = Segments.from_slots([0, 1])

    assert expands_into_norm(one.segments, one.module)
    assert not expands_into_norm(mix, one.module)
    assert not expands_into_norm(uncut, one.module)
    assert not expands_into_norm(one.segments, other.module)
    assert not expands_into_norm(one.segments, wide.module)
    assert not expands_into_norm(one.segments, slices.module)
    many = Segments.from_slots([0] * 129, block_rows=16)
    assert not expands_into_norm(many, one.module)

"""The plain sum, what the kernel's launch compiles to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.experts import triton_combine_experts
from kernels.experts.combine_experts import combine_experts_reference
from kernels.experts.triton_combine_experts import combine_experts_kernel, combine_experts_triton
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_combine_experts, "combine_experts_kernel", recorder)
    places = torch.zeros(32, dtype=torch.int64)
    combine_experts_triton(torch.zeros(32, 2048, dtype=torch.bfloat16), places, torch.zeros(4, 8))

    compiled = compile_launch(combine_experts_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == compiled.num_narrow == 0
    assert compiled.num_registers <= 48
    assert compiled.read_before_wait == (None if arch < 90 else set())


def test_answers_are_weighed_and_summed_in_float32() -> None:
    answers = torch.tensor([[1.0], [256.0], [2.0], [3.0]], dtype=torch.bfloat16)
    shares = torch.tensor([[0.5, 1.0], [1.0, 1.0]])

    out = combine_experts_reference(answers, torch.tensor([1, 0, 2, 3]), shares)

    assert out.tolist() == [[129.0], [5.0]]


def test_answers_of_another_number_are_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"answers are \(3, 8\).*contiguous \(4, 8\)"):
        combine_experts_triton(torch.zeros(3, 8), torch.zeros(4, dtype=torch.int64), torch.zeros(2, 2))

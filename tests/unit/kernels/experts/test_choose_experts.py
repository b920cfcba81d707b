"""The plain choice, what the kernel's launch compiles to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.experts import triton_choose_experts
from kernels.experts.choose_experts import choose_experts_reference
from kernels.experts.triton_choose_experts import choose_experts_kernel, choose_experts_triton
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_launched_compiles_without_spills(
    arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_choose_experts, "choose_experts_kernel", recorder)
    choose_experts_triton(torch.zeros(4, 128, dtype=torch.bfloat16), 8, True)

    compiled = compile_launch(choose_experts_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= 64
    assert compiled.shared_bytes == compiled.num_narrow == 0
    assert compiled.read_before_wait == (None if arch < 90 else set())


def test_shares_are_those_of_all_experts_or_sum_to_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])

    whole, normalized = (choose_experts_reference(logits, 2, normalizes) for normalizes in (False, True))

    assert whole.chosen.tolist() == normalized.chosen.tolist() == [[1, 2]]
    torch.testing.assert_close(whole.shares, logits.softmax(-1)[:, [1, 2]])
    torch.testing.assert_close(normalized.shares.sum(), torch.tensor(1.0))


def test_more_choices_than_experts_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"logits are \(4, 3\) with strides \(3, 1\) for 5 chosen"):
        choose_experts_triton(torch.zeros(4, 3), 5, True)

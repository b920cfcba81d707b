"""What the gates' launches compile to, and what their launchers refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from kernels.activations import triton_gates
from kernels.activations.triton_gates import (
    clamped_gate_kernel,
    clamped_swiglu_triton,
    gate_kernel,
    geglu_triton,
    swiglu_triton,
)
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("gate", "kernel"),
    [
        (swiglu_triton, gate_kernel),
        (geglu_triton, gate_kernel),
        (partial(clamped_swiglu_triton, alpha=1.702, limit=7.0), clamped_gate_kernel),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    gate: Callable[[Tensor], Tensor],
    kernel: JITFunction,
    arch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_gates, kernel.fn.__name__, recorder)
    gate(torch.zeros(2, 2 * 14_336, dtype=torch.bfloat16))

    compiled = compile_launch(kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= 48
    assert compiled.num_narrow == 0
    assert compiled.read_before_wait == (None if arch < 90 else set())


def test_columns_that_are_no_two_halves_are_refused_with_the_shape() -> None:
    with pytest.raises(ValueError, match=r"gate_up is \(3, 7\)"):
        swiglu_triton(torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"gate_up is \(3, 4\) with strides \(8, 2\)"):
        geglu_triton(torch.zeros(3, 8)[:, ::2])
    with pytest.raises(ValueError, match=r"gate_up is \(3, 5\)"):
        clamped_swiglu_triton(torch.zeros(3, 5), 1.702, 7.0)


def test_a_limit_that_nothing_is_within_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit is 0\.0; give a positive one"):
        clamped_swiglu_triton(torch.zeros(3, 4), 1.702, 0.0)

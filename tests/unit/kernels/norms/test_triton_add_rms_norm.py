"""What the norm's launch compiles to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.norms import triton_add_rms_norm
from kernels.norms.triton_add_rms_norm import add_rms_norm_kernel, add_rms_norm_triton
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "width", "max_registers"),
    [(torch.bfloat16, 4096, 64), (torch.bfloat16, 128, 40), (torch.float32, 576, 64)],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    arch: int,
    dtype: torch.dtype,
    width: int,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_add_rms_norm, "add_rms_norm_kernel", recorder)
    residual = torch.zeros(2, width, dtype=dtype)
    add_rms_norm_triton(residual, residual, torch.ones(width), 1e-5)

    compiled = compile_launch(add_rms_norm_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.num_narrow == 0
    assert compiled.read_before_wait == (None if arch < 90 else {"weight_ptr"})


def test_what_the_kernel_would_misread_is_refused_with_the_values() -> None:
    x, weight = torch.zeros(3, 8), torch.ones(8)

    with pytest.raises(ValueError, match=r"residual is \(3, 4\) with strides \(8, 2\)"):
        add_rms_norm_triton(x[:, ::2], None, weight[:4], 1e-5)
    with pytest.raises(ValueError, match=r"1 to 16384 columns"):
        add_rms_norm_triton(torch.zeros(1, 20_000), None, torch.ones(20_000), 1e-5)
    with pytest.raises(ValueError, match=r"delta is \(3, 8\) torch.float16; .* \(3, 8\) torch.float32"):
        add_rms_norm_triton(x, x.half(), weight, 1e-5)
    with pytest.raises(ValueError, match=r"weight is \(8,\) torch.bfloat16; give contiguous float32 \[8\]"):
        add_rms_norm_triton(x, None, weight.bfloat16(), 1e-5)

"""What the draw's launch compiles to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.sampling import triton_draw
from kernels.sampling.triton_draw import draw_kernel, draw_triton
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch
from tests.unit.kernels.draw_cases import Case, arguments


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("vocab_size", [512, 128_256])
def test_what_is_launched_compiles_without_spills(
    arch: int, vocab_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(triton_draw, "draw_kernel", recorder)
    draw_triton(*arguments(torch.zeros(1, vocab_size), Case(), [0.5]))

    compiled = compile_launch(draw_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= 128  # 512 threads have no more
    assert "ld.global.v4" in compiled.ptx


def test_one_variant_serves_every_batch_and_every_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(triton_draw, "draw_kernel", recorder)

    for num_rows, case in [(1, Case()), (3, Case(top_k=5)), (64, Case(min_p=0.1)), (2, Case(top_p=0.5))]:
        draw_triton(*arguments(torch.zeros(num_rows, 512), case, [0.5] * num_rows))

    constants = [launch.options for launch in recorder.launches]
    assert constants == [constants[0]] * 4
    varying = {
        parameter.name
        for parameter in draw_kernel.params
        if not parameter.is_constexpr
        and not parameter.do_not_specialize
        and not parameter.do_not_specialize_on_alignment
    }
    assert varying == {"logits_ptr", "vocab_size"}


def test_what_the_kernel_would_misread_is_refused_with_the_values() -> None:
    logits = torch.zeros(2, 8)
    good = arguments(logits, Case(min_p=0.1), [0.5, 0.5])

    with pytest.raises(
        ValueError, match=r"logits are \(2, 4\) torch.float32 with strides \(8, 2\); give a co"
    ):
        draw_triton(*arguments(logits[:, ::2], Case(), [0.5, 0.5]))
    with pytest.raises(
        ValueError, match=r"logits are \(2, 8\) torch.bfloat16.*float32 matrix of 1 to 524288"
    ):
        draw_triton(*good._replace(logits=logits.bfloat16()))
    for name, values in good._asdict().items():
        for wrong in (values[:1], values.half(), values.repeat(2)[::2]) if name != "logits" else ():
            with pytest.raises(ValueError, match=rf"{name} are .*; give contiguous torch.\w+ \[2\]"):
                draw_triton(*good._replace(**{name: wrong}))
    with_maxima = (*good, torch.zeros(3))
    with pytest.raises(ValueError, match=r"largest are \(3,\) torch.float32 with strides \(1,\); give"):
        draw_triton(*with_maxima)

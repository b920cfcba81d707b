"""What the draw's launch compiles to, and what its launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.sampling import triton_draw
from kernels.sampling.triton_draw import draw_kernel, draw_triton
from kernels.sampling.triton_narrow import narrow_kernel
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch
from tests.unit.kernels.draw_cases import Arguments, Case, arguments


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """What would have been launched."""
    found = {"draw": Recorder(), "narrow": Recorder()}
    for name, recorder in found.items():
        monkeypatch.setattr(triton_draw, f"{name}_kernel", recorder)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "max_registers"), [("draw", 120), ("narrow", 112)])
def test_what_is_launched_compiles_without_spills(
    arch: int,
    kernel: str,
    max_registers: int,
    recorders: dict[str, Recorder],
    tmp_path: Path,
) -> None:
    draw_triton(*arguments(torch.zeros(1, 128_256), Case(), [0.5]))
    jitted = {"draw": draw_kernel, "narrow": narrow_kernel}[kernel]

    compiled = compile_launch(jitted, recorders[kernel].launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers  # 512 threads have 128 at most
    assert "ld.global.v4" in compiled.ptx


def test_one_variant_serves_every_batch_and_every_limit(recorders: dict[str, Recorder]) -> None:
    for num_rows, case in [(1, Case()), (3, Case(top_k=5)), (64, Case(min_p=0.1)), (2, Case(top_p=0.5))]:
        draw_triton(*arguments(torch.zeros(num_rows, 16_384), case, [0.5] * num_rows))

    for kernel, recorder in ((draw_kernel, recorders["draw"]), (narrow_kernel, recorders["narrow"])):
        constants = [launch.options for launch in recorder.launches]
        assert constants == [constants[0]] * 4
        specialized = {
            parameter.name
            for parameter in kernel.params
            if not parameter.is_constexpr
            and not parameter.do_not_specialize
            and not parameter.do_not_specialize_on_alignment
        }
        # Those that the launcher makes are aligned, logits lie at a multiple of a row.
        assert specialized <= {"logits_ptr", "vocab_size", "few_logits_ptr", "few_ids_ptr", "rest_ptr"}


def test_small_vocabularies_are_searched_whole(recorders: dict[str, Recorder]) -> None:
    draw_triton(*arguments(torch.zeros(2, 16_383), Case(top_k=5), [0.5] * 2))

    assert (len(recorders["draw"].launches), recorders["narrow"].launches) == (1, [])


@pytest.mark.parametrize("min_p", [None, 0.1])
def test_the_launcher_asks_the_device_nothing(min_p: float | None, recorders: dict[str, Recorder]) -> None:
    given = arguments(torch.zeros(3, 16_384), Case(top_k=5, top_p=0.9, min_p=min_p), [0.5] * 3)
    there = Arguments._make(None if part is None else part.to("meta") for part in given)

    tokens = draw_triton(*there)

    assert (tokens.device.type, tokens.shape, tokens.dtype) == ("meta", (3,), torch.int64)
    assert [len(recorder.launches) for recorder in recorders.values()] == [1, 1]


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

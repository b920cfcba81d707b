"""Every op has a reference, a test and a benchmark; an implementation that is missing is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels import registry
from kernels.cpu.library import available_levels
from kernels.registry import COLUMNS, OPS, Level, MissingKernel, Op, build, find, resolve

NAMES = [op.name for op in OPS]


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_every_op_has_a_reference_of_its_name_in_the_kernels(op: Op) -> None:
    assert op.reference.__name__ == f"{op.name}_reference"
    assert op.reference.__module__.startswith("kernels.")


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_a_test_of_its_name(name: str) -> None:
    (found,) = Path(__file__).parent.rglob(f"test_{name}.py")

    assert "\ndef test_" in found.read_text()


def test_names_are_unique_and_every_op_is_a_field_of_the_kernels() -> None:
    fields = set(registry.Kernels.__dataclass_fields__)

    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= fields


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", available_levels())
def test_a_cpu_has_every_op_at_every_level_or_says_what_it_does_without(
    level: Level, dtype: torch.dtype
) -> None:
    kernels = build("cpu", dtype, level)

    for op in OPS:
        assert getattr(kernels, op.name) is not None or op.otherwise is not None
    assert kernels.level == level


def test_two_levels_can_be_had_side_by_side() -> None:
    x, weight = torch.randn(5, 64), torch.ones(64)
    results = [
        build("cpu", torch.float32, level).add_rms_norm(x.clone(), None, weight, 1e-5)
        for level in available_levels()
    ]

    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


def test_without_a_level_it_is_the_one_in_force() -> None:
    with registry.library.use_level("torch"):
        assert build("cpu", torch.float32).level == "torch"
    assert build("cpu", torch.float32).level == registry.library.level()


def test_a_missing_implementation_is_an_error_that_names_op_device_dtype_and_level() -> None:
    with pytest.raises(
        MissingKernel,
        match=r"no implementation of add_rms_norm for device 'cuda', dtype bfloat16, level 'triton'; "
        r"this dtype has it on cpu/avx512_bf16, cpu/avx2, cpu/torch, meta/meta",
    ):
        build("cuda", torch.bfloat16)
    with pytest.raises(MissingKernel, match=r"no implementation of swiglu for device 'xpu', dtype float32"):
        resolve("swiglu", "xpu", torch.float32, "torch")


def test_a_level_that_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.library, "best_level", lambda: "torch")

    with pytest.raises(ValueError, match=r"level 'avx2' is not to be had here; give one of \('torch',\)"):
        build("cpu", torch.float32, "avx2")


def test_an_unknown_op_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no op 'softmax'; there are add_rms_norm, "):
        resolve("softmax", "cpu", torch.float32, "torch")


def test_the_table_shows_what_serves_each_column() -> None:
    head, *rows = registry.table()

    assert head[2:] == tuple(f"{device}/{level}" for device, level in COLUMNS)
    shown = {row[:2]: row[2:] for row in rows}
    assert shown["logits", "float32"][:3] == ("torch", "torch", "torch")
    assert shown["logits", "bfloat16"][:3] == ("C++", "C++", "torch")
    assert shown["paged_attention", "float32"][2] == "- (blocks are gathered for torch's attention)"
    for op in OPS:
        assert find(op, "meta", torch.bfloat16, "meta") is not None, op.name

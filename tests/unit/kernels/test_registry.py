"""Every op has a reference, a test and a benchmark; an implementation that is missing is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.__main__ import main as benchmark
from benchmarks.kernels.cases import CASES
from kernels import registry
from kernels.batch_invariant import BATCH_INVARIANT
from kernels.cpu import library
from kernels.cpu.library import available_levels
from kernels.linear.linear import Linear
from kernels.linear.quantized_linear import QuantizedLinear
from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRATable, PackedShape
from kernels.ops import OPS, Level, Op
from kernels.registry import COLUMNS, MissingKernel, build, by_name, find, resolve

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", available_levels())
def test_every_op_of_a_cpu_can_be_had_with_bits_that_do_not_depend_on_the_batch(
    level: Level, dtype: torch.dtype
) -> None:
    kernels = build("cpu", dtype, level, batch_invariant=True)

    assert set(BATCH_INVARIANT) == set(NAMES)
    assert [name for name in NAMES if getattr(kernels, name) is None] == ["grouped_linear"]
    assert kernels.batch_invariant
    assert not build("cpu", dtype, level).batch_invariant


def test_a_card_has_no_op_whose_bits_do_not_depend_on_the_batch() -> None:
    with pytest.raises(
        MissingKernel, match="no batch-invariant implementation of add_rms_norm for device 'cu"
    ):
        build("cuda", torch.float32, batch_invariant=True)


def test_two_levels_can_be_had_side_by_side() -> None:
    x, weight = torch.randn(5, 64), torch.ones(64)
    results = [
        build("cpu", torch.float32, level).add_rms_norm(x.clone(), None, weight, 1e-5)
        for level in available_levels()
    ]

    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


def test_without_a_level_it_is_the_one_in_force() -> None:
    with library.use_level("torch"):
        assert build("cpu", torch.float32).level == "torch"
    assert build("cpu", torch.float32).level == library.level()


def test_a_missing_implementation_is_an_error_that_names_op_device_dtype_and_level() -> None:
    with pytest.raises(
        MissingKernel,
        match=r"no implementation of add_rms_norm for device 'cpu', dtype float16, level 'avx2'; "
        r"this dtype has it on cpu/torch, cuda/triton, meta/meta",
    ):
        build("cpu", torch.float16, "avx2")
    with pytest.raises(MissingKernel, match=r"no implementation of swiglu for device 'xpu', dtype float32"):
        resolve("swiglu", "xpu", torch.float32, "torch")


def test_a_level_that_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "best_level", lambda: "torch")

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
    assert shown["logits", "bfloat16"][:3] == ("oneDNN or C++", "C++", "torch")
    assert shown["linear", "bfloat16"][:3] == ("oneDNN or widened", "C++", "oneDNN or widened")
    assert shown["quantized_linear", "bfloat16"] == ("C++", "C++", "torch", "Triton", "shapes")
    assert shown["paged_attention", "float32"][2] == "- (blocks are gathered for torch's attention)"
    for op in OPS:
        assert find(op, "meta", torch.bfloat16, "meta") is not None, op.name


def test_every_op_has_a_benchmark() -> None:
    assert list(CASES) == NAMES


def test_the_benchmark_runs_every_op_and_shows_its_floor(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(["--small", "--repeats", "1", "--dtype", "float32"]) == 0

    shown = capsys.readouterr().out
    for name in NAMES:
        assert f"| {name} " in shown
    assert "floor us" in shown


@pytest.mark.parametrize("op", ["add_rms_norm", "swiglu", "geglu", "logits", "paged_attention"])
def test_tensors_without_contents_come_out_of_an_op_in_the_shape_of_those_with(op: str) -> None:
    gate_up, x, weight = torch.ones(4, 32), torch.ones(4, 16), torch.ones(8, 16)
    cache, angles = torch.ones(2, 1, 16, 8), torch.ones(4, 8)
    spans, tables = torch.tensor([[0, 4, 0]], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    arguments: dict[str, tuple[Any, ...]] = {
        "add_rms_norm": (x, x.clone(), weight[0], 1e-5),
        "swiglu": (gate_up,),
        "geglu": (gate_up,),
        "logits": (x, weight),
        "paged_attention": (gate_up, cache, cache.clone(), angles, angles, spans, tables, 0.5),
    }
    kernel = resolve(op, "meta", torch.float32, "meta")
    empty = [part.to("meta") if isinstance(part, Tensor) else part for part in arguments[op]]

    result = (kernel.multiply if op == "logits" else kernel)(*empty)

    expected = by_name(op).reference(*arguments[op])
    assert (result.device.type, result.shape, result.dtype) == ("meta", expected.shape, expected.dtype)


def test_modules_whose_weights_have_no_contents_can_be_called() -> None:
    kernels = build("meta", torch.bfloat16)
    x = torch.empty(4, 32, dtype=torch.bfloat16, device="meta")
    layer = Linear(torch.empty(8, 32, dtype=torch.bfloat16, device="meta"), kernel=kernels.linear)
    codes, scales = torch.empty(8, 16, dtype=torch.uint8, device="meta"), torch.empty(8, device="meta")
    assert kernels.quantized_linear is not None
    quantized = QuantizedLinear(
        [QuantizedWeight(32, codes, scales, None, IDENTITY_TABLE, 32)], multiply=kernels.quantized_linear
    )
    table = LoRATable({"one": PackedShape(32, (8,), torch.bfloat16)}, 1)

    out = layer(x)
    kernels.lora_add(out, x, Segments.from_slots([0] * 4), table.module("one"))

    assert out.shape == quantized(x).shape == (4, 8)
    with pytest.raises(ValueError, match=r"x is \(4, 32\) and out is \(4, 8\).*\(3, 32\) and \(3, 8\)"):
        kernels.lora_add(out, x, Segments.from_slots([0] * 3), table.module("one"))

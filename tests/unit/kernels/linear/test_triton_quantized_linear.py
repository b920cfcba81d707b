"""What the launches of the quantised product compile to, and what their launcher refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.linear import triton_quantized_linear, triton_spread
from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight
from kernels.linear.triton_quantized_linear import (
    TILES,
    quantized_linear_kernel,
    quantized_linear_triton,
    split_width,
    sum_splits_kernel,
)
from kernels.linear.triton_spread import spread_kernel
from tests.unit.kernels.compiled import ARCHITECTURES, MAX_SHARED_BYTES, Recorder, compile_launch, launch_on
from tests.unit.kernels.random_codes import random_weight

FEATURES = 4096
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CODINGS = {
    "nf4": (4, 64, False),
    "int4": (4, 128, True),
    "int8": (8, FEATURES, True),
    "blocks of 24": (4, 24, True),
}


def weight_of(coding: str) -> QuantizedWeight:
    bits, block, has_zeros = CODINGS[coding]
    num_blocks = -(-FEATURES * FEATURES // block)
    return QuantizedWeight(
        FEATURES,
        torch.empty(FEATURES, FEATURES * bits // 8, dtype=torch.uint8),
        torch.empty(num_blocks),
        torch.empty(num_blocks, dtype=torch.uint8) if has_zeros else None,
        None if bits == 8 else IDENTITY_TABLE if has_zeros else torch.empty(16),
        block,
    )


class Recorders:
    """What the kernels are launched with, none of them run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.multiply, self.sum, self.spread = Recorder(), Recorder(), Recorder()
        monkeypatch.setattr(triton_quantized_linear, "quantized_linear_kernel", self.multiply)
        monkeypatch.setattr(triton_quantized_linear, "sum_splits_kernel", self.sum)
        monkeypatch.setattr(triton_spread, "spread_kernel", self.spread)


def launch(coding: str, num_rows: int, dtype: torch.dtype) -> None:
    x, out, bias = (torch.empty(shape, dtype=dtype) for shape in ((num_rows, FEATURES),) * 2 + ((FEATURES,),))
    quantized_linear_triton(out, 0, x, weight_of(coding), bias)


@pytest.mark.parametrize(
    ("arch", "coding", "num_rows", "dtype", "max_registers"),
    [
        *((arch, "nf4", 1, BF16, 128) for arch in ARCHITECTURES),
        *((arch, "int4", 64, BF16, 192) for arch in ARCHITECTURES),
        (90, "nf4", 32, BF16, 128),
        (90, "int4", 1, BF16, 80),
        (90, "int8", 8, BF16, 96),
        (120, "int8", 64, BF16, 200),
        (90, "int4", 32, FP32, 96),
        (90, "blocks of 24", 1, BF16, 168),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    arch: int,
    coding: str,
    num_rows: int,
    dtype: torch.dtype,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_on(arch, monkeypatch)
    recorders = Recorders(monkeypatch)
    launch(coding, num_rows, dtype)

    compiled = compile_launch(
        quantized_linear_kernel, recorders.multiply.launches[0], arch=arch, tmp_path=tmp_path
    )

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.num_narrow == 0
    assert compiled.shared_bytes <= MAX_SHARED_BYTES
    assert ("prmt.b32 plane0" in compiled.ptx) == (coding == "nf4")
    looked_up = {"table_ptr"} if coding == "nf4" else set()
    assert compiled.read_before_wait == (None if arch < 90 else looked_up)
    before, *_ = compiled.ptx.split("griddepcontrol.wait;")
    assert arch < 90 or ("cp.async" not in before and "prefetch.global.L2" in before)


@pytest.mark.parametrize(("arch", "coding"), [(80, "int4"), (90, "nf4")])
def test_sums_and_plain_tiles_compile_without_spills(
    arch: int, coding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorders = Recorders(monkeypatch)
    monkeypatch.setattr(triton_spread, "MAX_TILE_BYTES", 64 << 20)
    launch(coding, 32, BF16)
    launch(coding, 257, BF16)

    pairs = (sum_splits_kernel, recorders.sum), (spread_kernel, recorders.spread)
    for kernel, recorder in pairs:
        (launched,) = recorder.launches
        compiled = compile_launch(kernel, launched, arch=arch, tmp_path=tmp_path)
        assert compiled.stack_bytes == 0
        assert compiled.num_registers <= 64
        assert compiled.num_narrow == 0
        assert (compiled.read_before_wait is None) == (arch < 90)
        assert (compiled.read_before_wait or set()) <= {"table_ptr", "bias_ptr"}


@pytest.mark.parametrize(
    ("out_features", "in_features", "num_splits"),
    [
        (28672, 4096, (1, 1)),
        (6144, 4096, (4, 4)),
        (4096, 4096, (6, 5)),
        (4096, 14336, (6, 5)),
        (1024, 4096, (8, 8)),
        (64, 33, (1, 1)),
    ],
)
def test_splits_are_so_many_that_few_outputs_fill_a_device(
    out_features: int, in_features: int, num_splits: tuple[int, int]
) -> None:
    widths = [split_width(out_features, in_features, tile) for tile in (TILES[0], TILES[-1])]

    assert all(width % 128 == 0 for width in widths)
    assert tuple(-(-in_features // width) for width in widths) == num_splits


def test_splits_and_pieces_are_the_same_up_to_32_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = Recorders(monkeypatch)
    for num_rows in (1, 20, 32):
        launch("int4", num_rows, BF16)

    rows = {"BLOCK_M", "BLOCK_N", "num_stages", "num_warps"}
    seen = [
        {name: value for name, value in one.options.items() if name not in rows}
        for one in recorders.multiply.launches
    ]
    assert seen[0] == seen[1] == seen[2]


def test_what_the_kernels_would_misread_is_refused_with_the_values() -> None:
    weight = random_weight(8, 64, bits=4, block=32)
    x, out = torch.zeros(3, 64), torch.zeros(3, 8)

    with pytest.raises(ValueError, match=r"x is \(3, 64\) and out \(3, 8\) from column 1 on"):
        quantized_linear_triton(out, 1, x, weight, None)
    with pytest.raises(ValueError, match=r"x is torch.float32, out torch.float16, the bias None"):
        quantized_linear_triton(out.half(), 0, x, weight, None)
    with pytest.raises(ValueError, match=r"strides are .*\(1, 3\).*contiguous"):
        quantized_linear_triton(out, 0, x.t().contiguous().t(), weight, None)
    with pytest.raises(ValueError, match=r"x is on cpu, the weight on meta; give QuantizedWeight.to"):
        quantized_linear_triton(out, 0, x, weight.to("meta"), None)

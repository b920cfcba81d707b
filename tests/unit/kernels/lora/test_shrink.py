from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.lora import shrink
from kernels.lora.segments import Segments
from kernels.lora.shrink import lora_shrink, lora_shrink_reference, shrink_kernel, split_width
from kernels.lora.triton_add import lora_add_triton
from tests.unit.kernels.compiled import ARCHITECTURES, MAX_SHARED_BYTES, Recorder, compile_launch, launch_on
from tests.unit.kernels.random_adapters import Case, make_case


@pytest.fixture
def case() -> Case:
    return make_case(
        ranks=[[20, 3]],
        slots=[0] * 3 + [1] * 3,
        scales=[1.0, 0.5, 0.25, 2.0, 1.0, 1.0],
        in_features=24,
        slice_widths=[8],
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    ("arch", "dtype", "block_rows", "max_rank", "in_features", "max_registers"),
    [
        *((arch, torch.bfloat16, 16, 16, 4096, 64) for arch in ARCHITECTURES),
        *((arch, torch.bfloat16, 16, 64, 14336, 112) for arch in ARCHITECTURES),
        *((arch, torch.bfloat16, 64, 64, 4096, 160) for arch in ARCHITECTURES),
        (90, torch.float16, 32, 16, 4096, 128),
        (90, torch.float32, 16, 64, 4096, 96),
        (90, torch.float32, 64, 64, 4096, 240),
        (90, torch.bfloat16, 16, 16, 33, 255),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words_where_rows_are_aligned(
    arch: int,
    dtype: torch.dtype,
    block_rows: int,
    max_rank: int,
    in_features: int,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(
        ranks=[[8, 16]] * 3,
        slots=[0, 1],
        in_features=in_features,
        slice_widths=[32, 16, 16],
        dtype=dtype,
        block_rows=block_rows,
        max_rank=max_rank,
    )
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(shrink, "shrink_kernel", recorder)
    lora_shrink(case.x, case.module, case.lora_pass)

    compiled = compile_launch(shrink_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert f".target sm_{arch}" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.shared_bytes <= MAX_SHARED_BYTES
    assert in_features == 33 or compiled.num_narrow == 0
    looked_up = {"tiles_ptr", "table_ptr", "scales_ptr"}
    assert compiled.read_before_wait == (None if arch < 90 else looked_up)


@pytest.mark.parametrize(
    ("in_features", "width", "num_splits"),
    [(1, 512, 1), (2048, 512, 4), (4096, 512, 8), (8192, 512, 16), (14336, 1024, 14), (28672, 1792, 16)],
)
def test_splits_are_so_many_that_few_tiles_fill_a_device(
    in_features: int, width: int, num_splits: int
) -> None:
    assert split_width(in_features) == width
    assert -(-in_features // width) == num_splits


def test_splits_and_blocks_depend_on_the_module_and_the_tile_not_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(shrink, "shrink_kernel", recorder)
    for slots in ([0], [0] * 100 + [1] * 3):
        case = make_case(
            ranks=[[8, 16]], slots=slots, in_features=1300, slice_widths=[8], dtype=torch.float32
        )
        lora_shrink(case.x, case.module, case.lora_pass)

    one, many = (launch.options for launch in recorder.launches)
    assert one == many


def test_the_reference_is_the_dense_product_with_the_rows_own_adapter_and_scale(case: Case) -> None:
    wide, narrow = (case.module.weights(slot) for slot in (0, 1))
    assert wide is not None
    assert narrow is not None

    shrunk = lora_shrink_reference(case.x, case.module, case.lora_pass)

    scales = torch.tensor([[1.0], [0.5], [0.25]])
    torch.testing.assert_close(shrunk[0, 0, :3, :20], scales * (case.x[:3] @ wide.a[:20].T))
    torch.testing.assert_close(shrunk[0, 0, 3, :3], 2.0 * (narrow.a[:3] @ case.x[3]))
    assert shrunk[0, 0, 3:, 3:].abs().sum() == 0


def test_x_of_another_width_is_refused_with_both_widths(case: Case) -> None:
    with pytest.raises(ValueError, match=r"x is \(6, 25\).*24 columns"):
        lora_shrink(torch.zeros(6, 25), case.module, case.lora_pass)


def test_strided_x_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"strides \(48, 2\)"):
        lora_shrink(torch.zeros(6, 48)[:, ::2], case.module, case.lora_pass)


def test_x_of_another_dtype_is_refused_with_both_dtypes(case: Case) -> None:
    with pytest.raises(ValueError, match=r"x is torch.float16.*adapters are torch.float32"):
        lora_shrink(case.x.half(), case.module, case.lora_pass)


@pytest.mark.parametrize("block_rows", [None, 48])
def test_a_pass_that_is_not_cut_for_the_kernels_is_refused_with_the_remedy(
    block_rows: int | None, case: Case
) -> None:
    uncut = replace(case.lora_pass, block_rows=block_rows)

    with pytest.raises(ValueError, match=rf"block_rows {block_rows}; build its segments with block_rows=16,"):
        lora_shrink(case.x, case.module, uncut)
    with pytest.raises(ValueError, match="build its segments with block_rows=16"):
        lora_add_triton(case.out, case.x, Segments(6, (uncut,)), case.module)


def test_scales_of_another_batch_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"scales is \(6,\) .*contiguous \(7,\)"):
        lora_shrink(torch.zeros(7, 24), case.module, case.lora_pass)


def test_tiles_of_a_wrong_type_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"table is \(2, 4\) torch.int32"):
        lora_shrink(case.x, case.module, replace(case.lora_pass, table=case.lora_pass.table.int()))


def test_tiles_on_another_device_are_refused_with_the_remedy(case: Case) -> None:
    (elsewhere,) = case.segments.to("meta").passes

    with pytest.raises(ValueError, match=r"table is on meta, the rows on cpu; give Segments.to\(device\)"):
        lora_shrink(case.x, case.module, elsewhere)

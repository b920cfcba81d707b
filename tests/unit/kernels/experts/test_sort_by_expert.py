"""How rows are sorted and cut, how many tiles there may be, and what the kernel's launch compiles to."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from kernels.experts import triton_sort_by_expert
from kernels.experts.sort_by_expert import num_tiles_for, sort_by_expert_reference, tile_rows_for
from kernels.experts.triton_sort_by_expert import sort_by_expert_kernel, sort_by_expert_triton
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on


@pytest.mark.parametrize(
    ("arch", "num_rows", "max_registers"), [*((arch, 64, 96) for arch in ARCHITECTURES), (90, 2048, 128)]
)
def test_what_is_launched_compiles_without_spills(
    arch: int, num_rows: int, max_registers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_sort_by_expert, "sort_by_expert_kernel", recorder)
    sequence_rows = torch.zeros(64, 3, dtype=torch.int32)
    sort_by_expert_triton(torch.zeros(num_rows, 8, dtype=torch.int64), 128, sequence_rows)

    compiled = compile_launch(sort_by_expert_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == compiled.num_narrow == 0
    assert compiled.num_registers <= max_registers
    assert compiled.read_before_wait == (None if arch < 90 else {"sequence_rows_ptr"})


def test_rows_of_an_expert_lie_together_in_the_order_of_the_batch_and_tiles_name_them() -> None:
    rows = sort_by_expert_reference(torch.tensor([[2, 0], [0, 3], [2, 3], [0, 2]]), 4)

    assert rows.sources.tolist() == [0, 1, 3, 0, 2, 3, 1, 2]
    assert rows.places.tolist() == [3, 0, 1, 6, 4, 7, 2, 5]
    assert rows.starts.tolist() == [0, 3, 3, 6, 8]
    assert rows.tiles.tolist() == [[0, 3, 0], [3, 6, 2], [6, 8, 3], [0, 0, 0]]


@pytest.mark.parametrize(
    ("num_rows", "num_chosen", "num_experts", "expected"),
    [
        *((1, 8, 128, 16), (64, 8, 128, 16), (256, 8, 128, 32), (512, 8, 128, 64), (2048, 8, 128, 128)),
        *((1, 2, 8, 16), (32, 2, 8, 16), (64, 2, 8, 32), (128, 2, 8, 64), (2048, 2, 8, 128)),
    ],
)
def test_tiles_have_more_rows_where_experts_have(
    num_rows: int, num_chosen: int, num_experts: int, expected: int
) -> None:
    assert tile_rows_for(num_rows * num_chosen, num_experts) == expected


def test_there_are_tiles_enough_for_every_choice() -> None:
    for counts in product((0, 1, 15, 16, 17), repeat=3):
        needed = sum(-(-count // 16) for count in counts)
        assert needed <= num_tiles_for(sum(counts), 3, 16)
    assert num_tiles_for(8, 128, 16) == 8


def test_choices_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chosen is \(4, 2\) torch.int32"):
        sort_by_expert_triton(torch.zeros(4, 2, dtype=torch.int32), 4)
    with pytest.raises(ValueError, match=r"sequence_rows is \(2, 3\) torch.int64"):
        sort_by_expert_triton(torch.zeros(4, 2, dtype=torch.int64), 4, torch.zeros(2, 3, dtype=torch.int64))

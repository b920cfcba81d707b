"""How sorted rows are cut into tiles of adapters, and what the kernels launched on them compile to."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from kernels.experts import triton_expert_segments
from kernels.experts.expert_rows import sort_on_host
from kernels.experts.expert_segments import expert_segments_reference, most_runs, most_tiles
from kernels.experts.sort_by_expert import sort_by_expert_reference
from kernels.experts.triton_expert_segments import expert_segments_kernel, expert_segments_triton
from kernels.lora import shrink
from kernels.lora.segments import Segments, SlotScale
from kernels.lora.shrink import lora_shrink, shrink_kernel
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on
from tests.unit.kernels.experts.device_rows import device_rows
from tests.unit.kernels.random_adapters import make_case


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_launched_compiles_without_spills(
    arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_expert_segments, "expert_segments_kernel", recorder)
    batch = Segments.from_slots([0] * 64, block_rows=16)
    expert_segments_triton(device_rows(64, 8, 128), batch)

    compiled = compile_launch(expert_segments_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == compiled.num_narrow == 0
    assert compiled.num_registers <= 64
    assert compiled.read_before_wait == (None if arch < 90 else set())


def test_adapters_are_looked_up_after_the_kernel_that_made_their_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(
        ranks=[[16, 8]] * 2, slots=[0] * 16, in_features=2048, slice_widths=[768, 768], dtype=torch.bfloat16
    )
    monkeypatch.setattr(triton_expert_segments, "expert_segments_kernel", Recorder())
    (made,) = expert_segments_triton(device_rows(16, 1, 4), case.segments).passes
    launch_on(90, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(shrink, "shrink_kernel", recorder)
    lora_shrink(case.x, case.module, made)

    compiled = compile_launch(shrink_kernel, recorder.launches[0], arch=90, tmp_path=tmp_path)

    assert compiled.read_before_wait == frozenset()
    assert compiled.stack_bytes == compiled.num_narrow == 0
    assert compiled.num_registers <= 64


def test_a_tile_has_one_experts_share_of_one_adapter() -> None:
    rows = sort_by_expert_reference(torch.tensor([[0, 1], [1, 0], [1, 2], [1, 0]]), 3)
    batch = Segments.from_slots([4, 4, -1, 5], block_rows=16)

    (made,) = expert_segments_reference(rows, batch).passes

    busy = [tile for tile in made.table.tolist() if tile[2] >= 0]
    assert busy == [[0, 2, 4, 0], [2, 3, 5, 0], [3, 5, 4, 1], [6, 7, 5, 1]]
    assert made.block_rows == 16
    assert made.made_in_step


def test_a_batch_that_is_not_filled_up_has_room_for_the_runs_it_has() -> None:
    filled, exact = (
        Segments.from_runs([(40, (SlotScale(1),)), (2, (SlotScale(0),))], block_rows=16, num_tiles=num_tiles)
        for num_tiles in (6, 0)
    )

    assert [most_runs(one.passes[0]) for one in (filled, exact)] == [6, 2]


def test_experts_have_room_for_every_tile_that_they_may_need() -> None:
    for runs in product((0, 1, 5, 16, 17), repeat=3):
        num_rows, cuts, row = sum(runs), set(), 0
        for run in runs:
            if run:
                cuts.add(row)
            row += run
        cuts |= set(range(0, num_rows, 16))
        assert len(cuts) <= most_tiles(num_rows, min(3, num_rows), 16)


def test_rows_of_the_host_and_rows_of_another_batch_are_refused() -> None:
    batch = Segments.from_slots([0] * 3, block_rows=16)

    with pytest.raises(TypeError, match="rows are ExpertRows; sort them with the kernels of the same device"):
        expert_segments_triton(sort_on_host(torch.tensor([[0], [1], [1]]), 2), batch)
    with pytest.raises(ValueError, match="8 sorted rows are not those of a batch of 3 rows"):
        expert_segments_triton(device_rows(4, 2, 2), batch)

from __future__ import annotations

import numpy as np
import pytest

from kernels.lora.segments import Pass, Run, Segments, SlotScale

ONE = (SlotScale(1),)


def test_neighbouring_rows_of_one_slot_are_one_run() -> None:
    segments = Segments.from_slots([2, 2, -1, 0, 0, 0, 2])

    (only,) = segments.passes
    assert only.runs == (Run(0, 2, 2), Run(3, 6, 0), Run(6, 7, 2))
    assert only.table.tolist() == [[0, 2, 2, 0], [3, 6, 0, 0], [6, 7, 2, 0]]
    assert only.scales.tolist() == [1.0] * 7
    assert segments.num_rows == 7


def test_runs_are_joined_and_empty_ones_dropped() -> None:
    segments = Segments.from_runs([(3, ONE), (0, (SlotScale(5),)), (2, ONE), (4, ())])

    assert segments.passes[0].runs == (Run(0, 5, 1),)
    assert segments.num_rows == 9


def test_one_slot_with_two_scales_is_one_run_and_rows_have_the_scales() -> None:
    segments = Segments.from_runs([(2, ONE), (3, (SlotScale(1, 0.5),))])

    assert segments.passes[0].runs == (Run(0, 5, 1),)
    assert segments.passes[0].scales.tolist() == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_every_further_adapter_of_a_row_is_in_a_further_pass() -> None:
    two = (SlotScale(1), SlotScale(0, -2.0))
    three = (SlotScale(3, 0.5), SlotScale(0, -2.0), SlotScale(2, 4.0))

    segments = Segments.from_runs([(1, ONE), (2, two), (1, three), (3, ())])

    assert [lora_pass.runs for lora_pass in segments.passes] == [
        (Run(0, 3, 1), Run(3, 4, 3)),
        (Run(1, 4, 0),),
        (Run(3, 4, 2),),
    ]
    assert [lora_pass.scales.tolist() for lora_pass in segments.passes] == [
        [1, 1, 1, 0.5, 1, 1, 1],
        [1, -2, -2, -2, 1, 1, 1],
        [1, 1, 1, 4, 1, 1, 1],
    ]
    assert segments.num_rows == 7


@pytest.mark.parametrize("num_rows", [0, 6])
def test_a_batch_without_adapters_has_no_passes(num_rows: int) -> None:
    segments = Segments.from_runs([(num_rows, ())])

    assert segments == Segments(num_rows, ())


def test_runs_cut_into_tiles_keep_to_their_rows_and_tables_fill_up_with_idle_ones() -> None:
    runs = [(18, (SlotScale(3, 0.5),)), (5, ()), (16, (SlotScale(0), SlotScale(1)))]

    segments = Segments.from_runs(runs, block_rows=16, num_tiles=5)

    first, second = segments.passes
    assert first.runs == (Run(0, 16, 3), Run(16, 18, 3), Run(23, 39, 0))
    assert first.table.tolist() == [[0, 16, 3, 0], [16, 18, 3, 0], [23, 39, 0, 0], *[[0, 0, -1, 0]] * 2]
    assert second.table.tolist() == [[23, 39, 1, 0], *[[0, 0, -1, 0]] * 4]
    assert first.block_rows == second.block_rows == 16
    assert first.scales.tolist() == Segments.from_runs(runs).passes[0].scales.tolist()


def test_more_tiles_than_asked_for_are_all_there() -> None:
    (only,) = Segments.from_slots([0] * 70, block_rows=32, num_tiles=2).passes

    assert only.table.tolist() == [[0, 32, 0, 0], [32, 64, 0, 0], [64, 70, 0, 0]]


def test_a_pass_without_runs_is_idle_tiles_only() -> None:
    idle = Pass.of((), np.ones(4, np.float32), block_rows=64, num_tiles=2)

    assert idle.runs == ()
    assert idle.table.tolist() == [[0, 0, -1, 0]] * 2
    assert Pass.of((), np.ones(0, np.float32)).table.shape == (0, 4)


def test_experts_stay_with_the_tiles_of_their_runs() -> None:
    runs = [Run(0, 20, 1, 5), Run(20, 21, 1, 6)]

    tiled = Pass.of(runs, np.ones(21, np.float32), block_rows=16)

    assert tiled.runs == (Run(0, 16, 1, 5), Run(16, 20, 1, 5), Run(20, 21, 1, 6))


@pytest.mark.parametrize(
    ("block_rows", "num_tiles", "message"),
    [
        (48, 0, r"block_rows is 48; give one of \(16, 32, 64\)"),
        (None, 3, "num_tiles is 3 with block_rows None"),
        (16, -1, "num_tiles is -1 with block_rows 16"),
    ],
)
def test_tiles_that_no_kernel_takes_are_refused(block_rows: int | None, num_tiles: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments.from_runs([(4, ())], block_rows=block_rows, num_tiles=num_tiles)


def test_a_copy_on_another_device_has_the_same_runs() -> None:
    segments = Segments.from_slots([0, 1, 1], block_rows=16, num_tiles=4)

    copy = segments.to("meta")

    assert copy == segments
    assert {copy.passes[0].table.device.type, copy.passes[0].scales.device.type} == {"meta"}


@pytest.mark.parametrize(("num_rows", "slot"), [(-1, 0), (2, -2)])
def test_impossible_runs_are_refused_with_their_values(num_rows: int, slot: int) -> None:
    with pytest.raises(ValueError, match=rf"run of {num_rows} rows with .*slot={slot}"):
        Segments.from_runs([(num_rows, (SlotScale(slot),))])

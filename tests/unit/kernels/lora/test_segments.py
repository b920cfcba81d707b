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


def test_tiles_never_cross_runs_skip_base_rows_and_fill_up_with_idle_ones() -> None:
    segments = Segments.from_runs([(18, (SlotScale(3, 0.5),)), (5, ()), (16, (SlotScale(0),))])

    tiles = segments.passes[0].tiles(16, pad_to=5)

    assert tiles.starts == [0, 16, 23, 0, 0]
    assert tiles.ends == [16, 18, 39, 0, 0]
    assert tiles.slots == [3, 3, 0, -1, -1]
    assert tiles.experts == [0, 0, 0, 0, 0]
    assert Pass.of((), np.ones(0, np.float32)).tiles(16) == ([], [], [], [])


@pytest.mark.parametrize(("num_rows", "slot"), [(-1, 0), (2, -2)])
def test_impossible_runs_are_refused_with_their_values(num_rows: int, slot: int) -> None:
    with pytest.raises(ValueError, match=rf"run of {num_rows} rows with .*slot={slot}"):
        Segments.from_runs([(num_rows, (SlotScale(slot),))])

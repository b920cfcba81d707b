from __future__ import annotations

import pytest

from kernels.segments import Segments


def test_neighbouring_rows_of_one_slot_are_one_run() -> None:
    segments = Segments.from_slots([2, 2, -1, 0, 0, 0, 2])

    assert segments.starts == (0, 2, 3, 6)
    assert segments.ends == (2, 3, 6, 7)
    assert segments.slots == (2, -1, 0, 2)
    assert segments.num_rows == 7
    assert [run.slot for run in segments.lora_runs] == [2, 0, 2]


def test_runs_are_joined_and_empty_ones_dropped() -> None:
    segments = Segments.from_runs([(3, 1), (0, 5), (2, 1), (4, -1)])

    assert segments.runs == ((0, 5, 1), (5, 9, -1))


def test_an_empty_batch_has_no_runs() -> None:
    segments = Segments.from_runs([])

    assert segments.runs == segments.lora_runs == ()
    assert segments.num_rows == 0


def test_tiles_never_cross_runs_skip_base_rows_and_fill_up_with_idle_ones() -> None:
    segments = Segments.from_runs([(18, 3), (5, -1), (16, 0)])

    tiles = segments.tiles(16, pad_to=5)

    assert tiles.starts == [0, 16, 23, 0, 0]
    assert tiles.ends == [16, 18, 39, 0, 0]
    assert tiles.slots == [3, 3, 0, -1, -1]


@pytest.mark.parametrize("run", [(-1, 0), (2, -2)])
def test_impossible_runs_are_refused_with_their_values(run: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"run of {run[0]} rows in slot {run[1]}"):
        Segments.from_runs([run])

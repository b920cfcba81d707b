from __future__ import annotations

import pytest

from workers.engine.scheduling.step_layout import StepLayout


@pytest.mark.parametrize("max_num_seqs", [1, 8, 64, 300])
def test_steps_with_prompts_have_fewer_sequences_than_rows_and_others_as_many(max_num_seqs: int) -> None:
    layout = StepLayout(max_num_seqs, max_blocks=64, max_loras=0)

    for num_seqs in range(1, max_num_seqs + 1):
        decode = layout.shape(num_seqs, num_seqs, 3)
        mixed = layout.shape(num_seqs + 1, num_seqs, 3)
        large = layout.shape(num_seqs + 500, num_seqs, 3)

        assert decode.num_tokens == decode.num_seqs >= num_seqs
        assert mixed.num_tokens > mixed.num_seqs >= num_seqs
        assert large.num_tokens > large.num_seqs >= num_seqs
        assert {decode.max_blocks, mixed.max_blocks, large.max_blocks} == {64}


@pytest.mark.parametrize("max_num_seqs", [1, 24, 512, 1000])
def test_every_fixed_shape_is_one_of_those_that_are_captured(max_num_seqs: int) -> None:
    layout = StepLayout(max_num_seqs, max_blocks=10, max_loras=4)
    captured = set(layout.fixed_shapes())

    for num_seqs in range(1, max_num_seqs + 1):
        for runs in ([], [num_seqs], [1] * min(num_seqs, 4)):
            assert layout.shape(num_seqs, num_seqs, 3, runs) in captured


@pytest.mark.parametrize(
    ("run_lengths", "num_tiles"),
    [
        pytest.param([], 0, id="no adapters"),
        pytest.param([32], 4, id="one"),
        pytest.param([17, 15], 4, id="two"),
        pytest.param([4] * 8, 10, id="eight"),
        pytest.param([1] * 10, 10, id="ten, one row each"),
        pytest.param([3] * 10, 10, id="as many tiles as eight can need"),
        pytest.param([2] * 16, 34, id="sixteen"),
        pytest.param([1] * 32, 34, id="all"),
        pytest.param([1] * 40, 34, id="more than there are slots: not captured"),
    ],
)
def test_steps_that_decode_have_tiles_for_about_as_many_adapters_as_they_use(
    run_lengths: list[int], num_tiles: int
) -> None:
    layout = StepLayout(32, max_blocks=64, max_loras=32)

    shape = layout.shape(32, 32, 3, run_lengths)

    assert shape.num_tiles == num_tiles
    assert shape in layout.fixed_shapes()

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

"""Rows sorted by the experts a router chose, and their adapters."""

from __future__ import annotations

import torch

from kernels.experts.expert_rows import ExpertRows
from kernels.lora.segments import Run, Segments, SlotScale

CHOSEN = torch.tensor([[2, 0], [0, 1], [2, 1], [0, 2]])


def test_each_experts_rows_lie_together_in_the_order_of_the_batch():
    rows = ExpertRows.of(CHOSEN)

    assert rows.sources.tolist() == [0, 1, 3, 1, 2, 0, 2, 3]
    assert rows.bounds == ((0, 0, 3), (1, 3, 5), (2, 5, 8))


def test_places_lead_back_from_every_choice_to_its_sorted_row():
    rows = ExpertRows.of(CHOSEN)

    assert rows.experts[rows.places.numpy()].tolist() == CHOSEN.flatten().tolist()
    assert rows.sources[rows.places].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_expert_that_nobody_chose_has_no_rows():
    rows = ExpertRows.of(torch.tensor([[3], [3]]))

    assert rows.bounds == ((3, 0, 2),)


def test_adapters_follow_their_rows_to_the_slots_of_each_expert():
    segments = Segments.from_runs([(2, (SlotScale(0),)), (1, (SlotScale(1, 0.5),)), (1, ())])

    (only,) = ExpertRows.of(CHOSEN).segments(segments).passes

    assert only.runs == (
        Run(0, 2, 0),  # rows 0 and 1 with expert 0
        Run(3, 4, 0, 1),  # row 1 with expert 1
        Run(4, 5, 1, 1),  # row 2 with expert 1
        Run(5, 6, 0, 2),  # row 0 with expert 2
        Run(6, 7, 1, 2),  # row 2 with expert 2
    )
    assert only.scales.tolist() == [1, 1, 1, 1, 0.5, 1, 0.5, 1]


def test_a_row_with_two_adapters_has_a_pass_for_each():
    segments = Segments.from_runs([(4, (SlotScale(1), SlotScale(0, 2.0)))])

    first, second = ExpertRows.of(CHOSEN).segments(segments).passes

    assert first.runs == (Run(0, 3, 1), Run(3, 5, 1, 1), Run(5, 8, 1, 2))
    assert second.runs == (Run(0, 3, 0), Run(3, 5, 0, 1), Run(5, 8, 0, 2))
    assert (first.scales.tolist(), second.scales.tolist()) == ([1] * 8, [2] * 8)


def test_batches_cut_into_tiles_stay_so():
    segments = Segments.from_runs([(40, (SlotScale(1),))], block_rows=16)

    (only,) = ExpertRows.of(torch.tensor([[2]] * 40)).segments(segments).passes

    assert only.runs == (Run(0, 16, 1, 2), Run(16, 32, 1, 2), Run(32, 40, 1, 2))
    assert only.block_rows == 16

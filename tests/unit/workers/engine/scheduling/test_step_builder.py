"""The tensors of a step say what its sequences are."""

from __future__ import annotations

from typing import NamedTuple

import torch

from kernels.lora.segments import Run, SlotScale
from workers.engine import SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.core.step_input import ForwardInput, SamplingInput
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.step_builder import MIN_ROWS, StepBuilder

NUM_KV_HEADS = 2


def sequence(
    name: str, num_tokens: int, computed: int, blocks: list[int], slot: int | None = None
) -> SequenceState:
    made = SequenceState(
        name,
        None,
        list(range(100, 100 + num_tokens)),
        SamplingParams(temperature=0.0),
        None,
        seed=0,
        max_total_tokens=200,
        stop_checker=None,
        arrival_time_s=0.0,
    )
    made.num_computed_tokens, made.block_table = computed, blocks
    made.slots = () if slot is None else (SlotScale(slot),)
    return made


class Built(NamedTuple):
    """Both halves of a step, and whose tokens it yields."""

    step: ForwardInput
    sampling: SamplingInput
    sampled: list[SequenceState]


def build(*rows: tuple[SequenceState, int]) -> Built:
    builder = StepBuilder(block_size=16, num_kv_heads=NUM_KV_HEADS, vocab_size=300, dtype=torch.float32)
    built = builder.build(Schedule([ScheduledRows(*row) for row in rows], [], []))
    sampling = builder.build_sampling(built.spans)
    return Built(built.forward, sampling.sampling, [span.sequence for span in sampling.sampled])


def test_decode_rows_come_first_and_slots_are_contiguous_in_each_part() -> None:
    built = build(
        (sequence("prefill-1", 6, 0, [1], slot=1), 6),
        (sequence("decode-1", 5, 4, [2], slot=1), 1),
        (sequence("prefill-base", 3, 0, [3]), 3),
        (sequence("decode-base", 9, 8, [4]), 1),
        (sequence("decode-0", 7, 6, [5], slot=0), 1),
    )

    assert [one.request_id for one in built.sampled] == [
        "decode-base",
        "decode-0",
        "decode-1",
        "prefill-base",
        "prefill-1",
    ]
    assert built.step.segments is not None
    assert [lora_pass.runs for lora_pass in built.step.segments.passes] == [
        (Run(1, 2, 0), Run(2, 3, 1), Run(6, 12, 1))
    ]
    assert built.sampling.rows.tolist() == [0, 1, 2, 5, 11, 11, 11, 11]  # float32 sums by fours


def test_rows_of_one_composition_are_contiguous_and_each_of_its_adapters_has_a_pass() -> None:
    mix = (SlotScale(0, 0.5), SlotScale(2, -1.0))
    rows = [sequence(str(index), 5, 4, [index + 1], slot=0) for index in range(5)]
    rows[0].slots = rows[3].slots = mix
    rows[2].slots = (SlotScale(0, 0.5),)

    built = build(*((row, 1) for row in rows))

    assert [one.request_id for one in built.sampled] == ["1", "2", "4", "0", "3"]
    assert built.step.segments is not None
    assert [lora_pass.runs for lora_pass in built.step.segments.passes] == [
        (Run(0, 5, 0),),
        (Run(3, 5, 2),),
    ]
    assert [lora_pass.scales[:5].tolist() for lora_pass in built.step.segments.passes] == [
        [1.0, 0.5, 1.0, 0.5, 0.5],
        [1.0, 1.0, 1.0, -1.0, -1.0],
    ]


def test_rows_carry_their_tokens_positions_and_places_in_the_cache() -> None:
    step, sampling, sampled = build((sequence("one", 20, 14, [7, 3]), 4))

    assert step.token_ids.tolist() == [114, 115, 116, 117]
    assert step.positions.tolist() == [14, 15, 16, 17]
    places = step.kv_write_rows.view(-1, NUM_KV_HEADS).tolist()
    assert places == [
        [(block * NUM_KV_HEADS + head) * 16 + offset for head in range(NUM_KV_HEADS)]
        for block, offset in [(7, 14), (7, 15), (3, 0), (3, 1)]
    ]
    assert (sampling.num_rows, sampling.rows.tolist(), sampled) == (0, [], [])  # two tokens are still to come


def test_small_steps_are_padded_with_rows_that_reach_nothing() -> None:
    step, sampling, _ = build((sequence("one", 5, 4, [2], slot=0), 1))

    assert step.num_tokens == MIN_ROWS
    assert step.kv_write_rows.tolist()[NUM_KV_HEADS:] == [0, 16] * 3  # the scratch block
    assert step.segments is not None
    assert (step.segments.num_rows, step.segments.passes[0].runs) == (MIN_ROWS, (Run(0, 1, 0),))
    assert (sampling.num_rows, sampling.rows.tolist()) == (1, [0, 0, 0, 0])
    assert [group.output_rows.tolist() for group in step.groups] == [[0]]


def test_a_batch_without_adapters_has_no_segments() -> None:
    assert build((sequence("one", 5, 0, [2]), 5)).step.segments is None


def test_a_group_pads_queries_and_blocks_and_hides_what_is_not_there() -> None:
    step = build((sequence("long", 19, 0, [1, 2]), 19), (sequence("short", 3, 1, [4]), 2)).step

    (group,) = step.groups
    assert (group.num_seqs, group.query_len) == (2, 19)
    assert group.query_rows.view(2, 19)[1].tolist() == [19, 20] + [20] * 17
    assert group.output_rows.view(2, 19)[1].tolist() == [19, 20] + [step.num_tokens] * 17
    tables = group.kv_rows.view(2, NUM_KV_HEADS, 2) // NUM_KV_HEADS
    assert tables.tolist() == [[[1, 2], [1, 2]], [[4, 0], [4, 0]]]
    (mask,) = group.masks
    visible = mask.eq(0).sum(dim=-1).squeeze(1)
    assert visible.tolist() == [list(range(1, 20)), [2, 3] + [3] * 17]
    assert not mask.isinf().all(dim=-1).any()


def test_decode_prefill_and_long_contexts_are_grouped_apart() -> None:
    decode = [(sequence(str(index), 20 + index, 19 + index, [1, 2]), 1) for index in range(4)]
    long_context = (sequence("far", 400, 399, list(range(1, 26))), 1)
    prefill = (sequence("new", 9, 0, [3]), 9)

    groups = build(*decode, long_context, prefill).step.groups

    assert [(group.num_seqs, group.query_len) for group in groups] == [(4, 1), (1, 1), (1, 9)]


def test_a_row_whose_token_is_still_being_chosen_says_where_it_will_be_found() -> None:
    known, pending = sequence("known", 5, 4, [1]), sequence("pending", 20, 0, [2, 3])
    pending.num_in_flight_tokens, pending.pending_place = 20, 7

    step = build((pending, 1), (known, 1)).step

    assert step.carried is not None
    assert (step.carried.rows.tolist(), step.carried.places.tolist()) == ([0], [7])
    assert (step.token_ids.tolist()[1], step.positions.tolist()[:2]) == (104, [20, 4])
    assert step.sequence_rows.tolist() == [[0, 1, 20], [1, 1, 4]]
    assert build((known, 1)).step.carried is None


def test_sampling_names_only_the_rows_it_is_given_and_sees_what_was_settled_meanwhile() -> None:
    builder = StepBuilder(block_size=16, num_kv_heads=NUM_KV_HEADS, vocab_size=300, dtype=torch.float32)
    ends, goes_on = sequence("ends", 5, 4, [1]), sequence("goes on", 9, 4, [2])
    for one in (ends, goes_on):
        one.num_in_flight_tokens, one.pending_place = one.num_tokens - 4, 0
    built = builder.build(Schedule([ScheduledRows(ends, 1), ScheduledRows(goes_on, 1)], [], []))

    goes_on.token_ids.append(50)
    sampling, sampled, _ = builder.build_sampling(built.spans[1:])

    assert (sampling.num_rows, sampling.rows.tolist()) == (1, [1] * MIN_ROWS)
    assert [span.sequence.request_id for span in sampled] == ["goes on"]

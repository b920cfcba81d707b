"""What captured steps rely on: all of one shape lie at the same places, and say the rest as data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.workers.engine.scheduling.test_step_builder import NUM_KV_HEADS, sequence
from workers.engine.core.sequence import SequenceState
from workers.engine.core.step_input import ForwardInput, StepShape
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.step_builder import StepBuilder
from workers.engine.scheduling.step_layout import StepLayout
from workers.engine.serving.step_buffers import DeviceBuffer, StepBuffers
from workers.engine.serving.step_graphs import idle_step

LAYOUT = StepLayout(max_num_seqs=8, max_blocks=6, max_loras=3)


def build(*rows: tuple[SequenceState, int]) -> ForwardInput:
    builder = StepBuilder(
        block_size=16,
        num_kv_heads=NUM_KV_HEADS,
        vocab_size=300,
        dtype=torch.float32,
        gathers_kv=False,
        layout=LAYOUT,
    )
    return builder.build(Schedule([ScheduledRows(*row) for row in rows], [], [])).forward


def decoding(number: int, slot: int | None) -> tuple[SequenceState, int]:
    return sequence(f"decode-{number}", 5 + number, 4 + number, [1 + number], slot=slot), 1


def prompt(number: int, num_tokens: int, slot: int | None) -> tuple[SequenceState, int]:
    return sequence(f"prompt-{number}", num_tokens, 0, [10 + number, 20 + number], slot=slot), num_tokens


def laid_out(step: ForwardInput, buffer: Tensor) -> dict[str, int]:
    """Return where the tensors that the layers read lie in a buffer."""
    there = StepBuffers().pack(step).to(buffer).unpack()
    assert isinstance(there, ForwardInput)
    read = {
        "token_ids": there.token_ids,
        "positions": there.positions,
        "sequence_rows": there.sequence_rows,
        "block_tables": there.block_tables,
    }
    for number, one in enumerate(() if there.segments is None else there.segments.passes):
        read |= {f"table {number}": one.table, f"scales {number}": one.scales}
    return {name: tensor.data_ptr() - buffer.data_ptr() for name, tensor in read.items()}


def shape_of(step: ForwardInput) -> StepShape:
    assert step.shape is not None
    return step.shape


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(
            [
                [decoding(0, 2), decoding(1, 2), decoding(2, None)],
                [decoding(0, 0), decoding(1, 1), decoding(2, 2), decoding(3, 0)],
            ],
            id="rows that decode",
        ),
        pytest.param(
            [
                [decoding(0, 1), prompt(1, 20, 0)],
                [prompt(0, 7, 2), prompt(1, 9, 2), decoding(2, 0), decoding(3, None)],
            ],
            id="with prompts",
        ),
    ],
)
def test_steps_of_one_shape_lie_where_the_captured_one_does(
    steps: list[list[tuple[SequenceState, int]]],
) -> None:
    built = [build(*rows) for rows in steps]
    shape = shape_of(built[0])
    buffer = DeviceBuffer(torch.device("cpu")).bytes(1 << 16)
    captured = laid_out(idle_step(shape, has_adapters=True), buffer)

    for step in built:
        assert shape_of(step) == shape
        assert laid_out(step, buffer) == captured
        assert step.segments is not None
        assert [one.table.shape[0] for one in step.segments.passes] == [shape.num_tiles]


def test_a_step_without_adapters_lies_where_the_one_captured_without_does() -> None:
    step = build(decoding(0, None), decoding(1, None), decoding(2, None))
    buffer = DeviceBuffer(torch.device("cpu")).bytes(1 << 16)

    assert step.segments is None
    assert laid_out(step, buffer) == laid_out(idle_step(shape_of(step), has_adapters=False), buffer)


def test_what_fills_a_step_up_is_nobodys() -> None:
    step = build(decoding(0, 1), decoding(1, 0), decoding(2, None))

    assert step.num_tokens == 4
    assert step.sequence_rows.tolist() == [[0, 1, 6], [1, 1, 5], [2, 1, 4], [3, 0, 0]]
    assert step.block_tables[3].tolist() == [0] * 6
    assert step.segments is not None
    assert step.segments.passes[0].table[2:].tolist() == [[0, 0, -1, 0]]
    assert step.segments.passes[0].scales.tolist() == [1.0] * 4


def test_every_step_within_the_limits_has_a_shape_that_is_captured_or_none() -> None:
    captured = set(LAYOUT.fixed_shapes())

    for num_seqs in range(1, 9):
        for num_tokens in (num_seqs, num_seqs + 1, 40, 256, 257):
            shape = LAYOUT.shape(num_tokens, num_seqs, 3)
            assert not shape.is_fixed or shape in captured
            assert shape.num_tokens >= num_tokens

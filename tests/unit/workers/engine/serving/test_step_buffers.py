"""Steps packed in two buffers by turns."""

from __future__ import annotations

import dataclasses

import torch

from kernels.lora.segments import Segments
from workers.engine.core.step_input import (
    AttentionGroup,
    CarriedTokens,
    ForwardInput,
    SamplingInput,
    TokenMasks,
)
from workers.engine.serving.step_buffers import StepBuffers


def _sampling(num_tokens: int) -> SamplingInput:
    ids = torch.arange(num_tokens)
    return SamplingInput(
        num_rows=1,
        rows=ids[-1:],
        all_greedy=False,
        temperatures=torch.tensor([0.5]),
        top_ks=torch.tensor([3]),
        top_ps=torch.tensor([0.9], dtype=torch.float64),
        uniforms=torch.tensor([0.25], dtype=torch.float64),
        masks=TokenMasks(torch.tensor([0]), torch.tensor([[5]], dtype=torch.int32)),
        segments=Segments.from_slots([0]),
    )


def _step(num_tokens: int) -> ForwardInput:
    ids = torch.arange(num_tokens)
    group = AttentionGroup(1, num_tokens, ids, ids, ids, (torch.zeros(1, 1, num_tokens, 16),))
    return ForwardInput(
        num_tokens=num_tokens,
        token_ids=ids + 7,
        positions=ids,
        kv_write_rows=ids * 2,
        sequence_rows=torch.tensor([[0, num_tokens, 0]], dtype=torch.int32),
        block_tables=torch.tensor([[1]], dtype=torch.int32),
        fresh_blocks=None,
        groups=(group,),
        segments=Segments.from_slots([0] * num_tokens),
        carried=CarriedTokens(ids[:1], ids[-1:]),
    )


def _assert_same(mine, theirs) -> None:
    if isinstance(mine, torch.Tensor):
        assert mine.dtype is theirs.dtype
        assert torch.equal(mine, theirs)
    elif dataclasses.is_dataclass(mine):
        assert type(mine) is type(theirs)
        for field in dataclasses.fields(mine):
            _assert_same(getattr(mine, field.name), getattr(theirs, field.name))
    elif isinstance(mine, tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            _assert_same(one, other)
    else:
        assert mine == theirs


def test_everything_of_a_step_arrives_from_one_buffer_for_each_half():
    step, sampling = _step(5), _sampling(5)

    first, second = StepBuffers().pack(step), StepBuffers().pack(sampling)

    arrived, asked = first.unpack(), second.unpack()
    assert isinstance(arrived, ForwardInput)
    assert isinstance(asked, SamplingInput)
    assert asked.masks is not None
    _assert_same(step, arrived)
    _assert_same(sampling, asked)
    start, end = first.buffer.data_ptr(), first.buffer.data_ptr() + first.buffer.numel()
    assert start <= arrived.token_ids.data_ptr() < end
    start, end = second.buffer.data_ptr(), second.buffer.data_ptr() + second.buffer.numel()
    assert start <= asked.masks.bits.data_ptr() < end


def test_a_step_stays_whole_while_the_next_one_is_packed():
    buffers = StepBuffers()

    first, second = buffers.pack(_step(5)), buffers.pack(_step(9))

    _assert_same(_step(5), first.unpack())
    _assert_same(_step(9), second.unpack())


def test_two_buffers_are_used_by_turns_and_kept():
    buffers = StepBuffers()

    places = [buffers.pack(_step(num_tokens)).buffer.data_ptr() for num_tokens in (5, 9, 6, 3)]

    assert places[0] == places[2]
    assert places[1] == places[3]
    assert places[0] != places[1]


def test_a_copy_elsewhere_is_one_copy_to_fixed_addresses():
    buffers, device = StepBuffers(), torch.zeros(1 << 16, dtype=torch.uint8)

    arrived = [buffers.pack(_step(num_tokens)).to(device) for num_tokens in (5, 9)]

    assert {packed.buffer.data_ptr() for packed in arrived} == {device.data_ptr()}
    _assert_same(_step(9), arrived[1].unpack())

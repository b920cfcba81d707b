"""Everything between the logits and the copy to the host asks the device nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.registry import build
from workers.engine.core.step_input import LogitShifts, LogprobRows, Penalties, SamplingInput, TokenMasks
from workers.engine.sampling.logprobs import token_logprobs
from workers.engine.sampling.sampler import ChosenTokens, choose

NUM_ROWS = 4


def _sampling(vocab_size: int) -> SamplingInput:
    return SamplingInput(
        num_rows=NUM_ROWS,
        rows=torch.arange(NUM_ROWS),
        all_greedy=False,
        temperatures=torch.tensor([0.0, 1.0, 0.5, 2.0]),
        top_ks=torch.tensor([vocab_size, 5, vocab_size, vocab_size]),
        top_ps=torch.tensor([1.0, 0.9, 0.5, 1.0], dtype=torch.float64),
        uniforms=torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64),
        min_ps=torch.tensor([0.0, 0.0, 0.1, 0.0]),
        masks=TokenMasks(torch.tensor([1, 3]), torch.full((2, -(-vocab_size // 32)), -2, dtype=torch.int32)),
        shifts=LogitShifts(torch.tensor([0, 0]), torch.tensor([2, 2]), torch.tensor([1.0, -1.0])),
        penalties=Penalties(torch.tensor([2]), torch.tensor([3]), torch.tensor([1.2]), torch.tensor([0.1])),
        logprobs=LogprobRows(torch.tensor([1, 2]), 3),
    )


PLAIN: dict[str, Any] = dict.fromkeys(("min_ps", "masks", "shifts", "penalties", "logprobs"))
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {**PLAIN, "all_greedy": True},
    "drawn": PLAIN,
    "everything": {},
    "everything, greedy": {"all_greedy": True},
}


def _leaves(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    else:
        assert value is None, value


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _on_meta(part) for name, part in fields.items()})
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [40, 512])
def test_tokens_are_chosen_without_looking_at_a_number(kind: str, vocab_size: int) -> None:
    sampling = dataclasses.replace(_sampling(vocab_size), **KINDS[kind])
    logits = torch.randn(NUM_ROWS, vocab_size, generator=torch.Generator().manual_seed(1))

    here = choose(logits, sampling, build("cpu", torch.float32).draw)
    there = choose(logits.to("meta"), _on_meta(sampling), build("meta", torch.float32).draw)

    assert isinstance(there, ChosenTokens)
    assert (there.barred is None, there.logprobs is None) == (here.barred is None, here.logprobs is None)
    leaves = list(_leaves(there))
    assert {leaf.device.type for leaf in leaves} == {"meta"}
    assert [(one.shape, one.dtype) for one in leaves] == [(one.shape, one.dtype) for one in _leaves(here)]


def test_logprobs_of_prompts_are_computed_without_looking_at_a_number() -> None:
    logits, token_ids = torch.empty(5, 32, device="meta"), torch.empty(5, dtype=torch.int64, device="meta")

    found = token_logprobs(logits, token_ids, num_likeliest=64)

    assert [tuple(part.shape) for part in found] == [(5, 33), (5, 33), (5,)]
    assert {part.device.type for part in found} == {"meta"}

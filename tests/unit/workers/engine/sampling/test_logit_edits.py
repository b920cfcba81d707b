"""Logits are masked, shifted and penalised row by row before any token is chosen."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from tests.unit.workers.engine.sampling.chosen import sample
from workers.engine.core.step_input import LogitShifts, Penalties, SamplingInput, TokenMasks
from workers.engine.sampling.logit_edits import edit_logits


def sampling(num_rows: int, temperature: float = 0.0) -> SamplingInput:
    return SamplingInput(
        num_rows=num_rows,
        rows=torch.arange(num_rows),
        all_greedy=temperature == 0.0,
        temperatures=torch.full((num_rows,), temperature),
        top_ks=torch.full((num_rows,), 10_000),
        top_ps=torch.ones(num_rows, dtype=torch.float64),
        uniforms=torch.full((num_rows,), 0.5, dtype=torch.float64),
    )


def masks(vocab_size: int, allowed: dict[int, list[int]]) -> TokenMasks:
    """Pack the allowed tokens of some rows."""
    bits = torch.zeros(len(allowed), -(-vocab_size // 32), dtype=torch.int64)
    for at, token_ids in enumerate(allowed.values()):
        for token_id in token_ids:
            bits[at, token_id // 32] |= 1 << (token_id % 32)
    return TokenMasks(torch.tensor(list(allowed)), bits.to(torch.int32))


def random_logits(num_rows: int, vocab_size: int) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("vocab_size", [7, 31, 32, 259, 512])
def test_masked_rows_keep_their_allowed_tokens_and_other_rows_keep_all(vocab_size: int) -> None:
    logits = random_logits(4, vocab_size)
    allowed = {3: [0, vocab_size - 1], 1: list(range(0, vocab_size, 3))}
    expected = torch.full_like(logits, -math.inf)
    for row in range(4):
        kept = allowed.get(row, list(range(vocab_size)))
        expected[row, kept] = logits[row, kept]

    edit_logits(logits, dataclasses.replace(sampling(4), masks=masks(vocab_size, allowed)))

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_masked_token_is_ever_chosen(temperature: float) -> None:
    logits = random_logits(64, 512)
    allowed = {row: [row, 511 - row] for row in range(0, 64, 2)}

    output = sample(logits, dataclasses.replace(sampling(64, temperature), masks=masks(512, allowed)))

    assert not any(output.failed)
    assert all(output.token_ids[row] in allowed[row] for row in allowed)
    assert len(set(output.token_ids[1::2])) > 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_every_token_masked_fails_alone_and_is_told_from_a_broken_one(temperature: float) -> None:
    logits = random_logits(4, 40)
    logits[2, 5] = math.nan

    output = sample(logits, dataclasses.replace(sampling(4, temperature), masks=masks(40, {1: [], 2: [7]})))

    assert output.failed == [False, True, True, False]
    assert output.barred == {1}


def test_a_mask_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="masks have 2 words of 32 bits for a vocabulary of 100; give 4"):
        edit_logits(random_logits(1, 100), dataclasses.replace(sampling(1), masks=masks(64, {0: [1]})))


def test_shifts_add_up_and_what_is_forbidden_stays_so() -> None:
    logits = torch.zeros(2, 4)
    shifts = LogitShifts(
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([2, 2, 0, 0, 3]),
        torch.tensor([1.5, 2.0, 100.0, -math.inf, -100.0]),
    )

    edit_logits(logits, dataclasses.replace(sampling(2), shifts=shifts))

    assert logits.tolist() == [[0.0, 0.0, 3.5, 0.0], [-math.inf, 0.0, 0.0, -100.0]]


def test_a_repetition_penalty_is_transformers_own() -> None:
    logits = random_logits(3, 50)
    seen = torch.tensor([[1, 4, 4, 9], [0, 49, 2, 3], [7, 7, 7, 7]])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen[:2], logits[:2].clone())
    untouched = logits[2].clone()
    pairs = [(row, token_id) for row in range(2) for token_id in sorted(set(seen[row].tolist()))]
    rows, token_ids = torch.tensor(pairs).T

    count = len(pairs)
    penalties = Penalties(rows, token_ids, torch.full((count,), 1.3), torch.zeros(count))
    edit_logits(logits, dataclasses.replace(sampling(3), penalties=penalties))

    assert torch.equal(logits[:2], expected)
    assert torch.equal(logits[2], untouched)


def test_masks_come_before_shifts_and_shifts_before_penalties() -> None:
    logits = torch.tensor([[1.0, -2.0, 5.0]])
    edits = dataclasses.replace(
        sampling(1),
        masks=masks(3, {0: [0, 1]}),
        shifts=LogitShifts(torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([6.0, 6.0])),
        penalties=Penalties(
            torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), torch.full((3,), 2.0), torch.full((3,), 0.25)
        ),
    )

    edit_logits(logits, edits)

    assert logits.tolist() == [[0.25, 1.75, -math.inf]]

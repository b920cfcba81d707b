"""Draws on a CPU are those of the rule, computed plainly in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.sampling.torch_draw import draw_torch
from tests.unit.kernels.conftest import Resolve
from tests.unit.kernels.draw_cases import (
    ALMOST_ONE,
    CASES,
    Case,
    arguments,
    assert_draws_as_the_reference,
    random_logits,
    tied_logits,
)

pytestmark = pytest.mark.numeric

UNIFORMS = [0.0, 1e-12, *((index + 0.5) / 28 for index in range(28)), 0.999999, ALMOST_ONE]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("vocab_size", [2, 33, 512, 3001, 20_480])
def test_random_rows_are_drawn_as_the_rule_says(vocab_size: int, case: Case) -> None:
    logits = random_logits(len(UNIFORMS), vocab_size)

    assert_draws_as_the_reference(draw_torch, logits, case, UNIFORMS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("vocab_size", [33, 512, 3001])
def test_of_equal_tokens_the_first_of_the_vocabulary_stay(vocab_size: int, case: Case) -> None:
    logits = tied_logits(len(UNIFORMS), vocab_size)

    assert_draws_as_the_reference(draw_torch, logits, case, UNIFORMS)


def test_every_level_draws_alike(resolve: Resolve) -> None:
    given = arguments(random_logits(32, 512), Case(top_k=20, top_p=0.9), UNIFORMS)

    with_maxima = (*given, given[0].amax(dim=-1))

    assert torch.equal(resolve("draw", torch.bfloat16)(*given), draw_torch(*given))
    assert torch.equal(resolve("draw", torch.bfloat16)(*with_maxima), draw_torch(*given))


def test_rows_without_a_draw_get_a_token_of_the_vocabulary_and_disturb_nobody() -> None:
    logits = random_logits(4, 512)
    expected = draw_torch(*arguments(logits, Case(top_p=0.9), [0.3] * 4))
    logits[1, 7], logits[2] = torch.nan, -torch.inf
    given = arguments(logits, Case(top_p=0.9), [0.3] * 4)

    tokens = draw_torch(*given._replace(temperatures=torch.tensor([1.0, 1.0, 1.0, 0.0])))

    assert tokens[0] == expected[0]
    assert all(0 <= token < 512 for token in tokens.tolist())

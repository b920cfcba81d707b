"""The Triton draw on host memory against the rule in float64, and beside the CPU's draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.registry import resolve
from kernels.sampling import triton_draw
from kernels.sampling.torch_draw import draw_torch
from kernels.sampling.triton_narrow import FewTokens
from tests.unit.kernels.draw_cases import (
    ALMOST_ONE,
    CASES,
    Arguments,
    Case,
    arguments,
    assert_draws_as_the_reference,
    random_logits,
    tied_logits,
)

draw = resolve("draw", "cpu", torch.float32, "triton")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through small vocabularies in several steps."""
    monkeypatch.setattr(triton_draw, "SEGMENTS", 32)
    monkeypatch.setattr(triton_draw, "COLUMNS", 8)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_random_rows_and_rows_of_equal_tokens_are_drawn_as_the_rule_says(case: Case) -> None:
    logits = torch.cat([random_logits(2, 301), tied_logits(2, 301)])

    assert_draws_as_the_reference(draw, logits, case, [0.0, 0.31, 0.67, ALMOST_ONE])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("vocab_size", [1, 2, 32, 256])
def test_small_vocabularies(vocab_size: int) -> None:
    logits = random_logits(2, vocab_size)

    assert_draws_as_the_reference(draw, logits, Case(top_k=3, top_p=0.9), [0.2, ALMOST_ONE])


LIMITED = ["top-k 50", "top-p", "top-p of almost all", "top-k and top-p", "min-p, top-k and top-p"]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", ["plain", *LIMITED])
def test_rows_of_large_vocabularies_are_drawn_as_the_rule_says(case: str) -> None:
    logits = torch.cat([random_logits(1, 2003), tied_logits(1, 2003), random_logits(1, 2003, spread=0.01)])

    assert_draws_as_the_reference(draw, logits, CASES[case], [0.9, 0.6, 0.3])


def test_rows_of_many_tiles_are_drawn_as_the_rule_says() -> None:
    logits = random_logits(2, 20_000)

    assert_draws_as_the_reference(draw, logits, Case(top_p=0.9), [0.4, 0.9])


@pytest.mark.usefixtures("small_tiles")
def test_the_likeliest_tokens_are_copied_in_order_unless_limits_may_lie_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaked, flat = random_logits(1, 2003), random_logits(1, 2003, spread=0.01)
    given = arguments(torch.cat([peaked, flat, flat, peaked]), Case(top_p=0.9), [0.5] * 4)
    given.top_ks[2], given.top_ps[3] = 30, 1.0
    few_logits, few_ids, rest = few = FewTokens.empty(4, 256, torch.device("cpu"))
    monkeypatch.setattr(FewTokens, "empty", lambda *_: few)

    draw(*given)

    assert [bool(one >= 0) for one in rest] == [True, False, True, False]
    for row in (0, 2):
        count = int((few_logits[row] > -torch.inf).sum())
        assert 64 <= count < 256
        ids = few_ids[row, :count].long()
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert torch.equal(few_logits[row, :count], given.logits[row, ids])
        assert set(ids.tolist()) == set(given.logits[row].topk(count).indices.tolist())
        assert (few_logits[row, count:] == -torch.inf).all()
    left_out = arguments(peaked, Case(), [0.5]).weights_left()[0]
    left_out[few_ids[0, : int((few_logits[0] > -torch.inf).sum())].long()] = 0.0
    assert float(rest[0]) == pytest.approx(float(left_out.sum()) * 2**43, rel=1e-5)
    assert rest[2] == 0


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("settings", [{}, {"top_k": 9, "top_p": 0.8}])
def test_draws_are_spread_as_the_weights_that_are_left(settings: dict[str, Any]) -> None:
    count = 16
    logits = random_logits(1, 48).expand(count, -1).contiguous()
    given = arguments(logits, Case(**settings), (torch.arange(count) + 0.5) / count)
    left = given.weights_left()[0]

    counts = torch.bincount(draw(*given), minlength=48)

    assert (counts - count * left / left.sum()).abs().max() <= 1.0


@pytest.mark.usefixtures("small_tiles")
def test_rows_have_settings_of_their_own_and_draw_what_the_cpu_draws() -> None:
    logits = random_logits(6, 300)
    given = Arguments(
        logits,
        torch.tensor([1.0, 0.0, 0.7, 2.0, 1.0, 1.0]),
        torch.tensor([300, 300, 5, 300, 40, 300]),
        torch.tensor([1.0, 1.0, 1.0, 0.5, 0.9, 0.9], dtype=torch.float64),
        torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.3]),
        torch.tensor([0.15, 0.25, 0.35, 0.45, 0.55, 0.65], dtype=torch.float64),
    )

    together = draw(*given)

    assert torch.equal(together, draw_torch(*given))
    for row in range(6):
        alone = draw(*(None if part is None else part[row : row + 1] for part in given))
        assert alone[0] == together[row]


@pytest.mark.usefixtures("small_tiles")
def test_rows_without_a_draw_get_a_token_of_the_vocabulary_and_disturb_nobody() -> None:
    case = Case(top_k=20, top_p=0.9)
    logits = random_logits(5, 259)
    expected = draw(*arguments(logits, case, [0.3] * 5))
    logits[1, 7], logits[2], logits[3, 9] = torch.nan, -torch.inf, torch.inf
    given = arguments(logits, case, [0.3] * 5)

    tokens = draw(*given._replace(temperatures=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])))

    assert tokens[0] == expected[0]
    assert all(0 <= token < 259 for token in tokens.tolist())
    assert draw(*arguments(torch.empty(0, 8), case, [])).shape == (0,)

"""Rules tell for each token what is forbidden, favoured and penalised."""

from __future__ import annotations

import math

import pytest

from workers.engine import SamplingParams
from workers.engine.sampling.bad_words import BadWords
from workers.engine.sampling.token_rules import TokenRules


def rules(bad_words: list[list[int]] | None = None, **settings: object) -> TokenRules:
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    words = BadWords(bad_words) if bad_words else None
    return TokenRules(params, [4, 5, 5], end_token_ids=[1, 30], bad_words=words)


def shifts(one: TokenRules) -> dict[int, float]:
    found = one.shifts()
    return {} if found is None else dict(zip(found.token_ids, found.values, strict=True))


def penalties(one: TokenRules) -> dict[int, tuple[float, float]]:
    found = one.penalties()
    if found is None:
        return {}
    factors, deductions = found.factors.tolist(), found.deductions.tolist()
    return {
        token_id: (round(factor, 4), round(deduction, 4))
        for token_id, factor, deduction in zip(found.token_ids.tolist(), factors, deductions, strict=True)
    }


def test_tokens_that_end_the_text_are_barred_until_the_minimum_is_generated() -> None:
    one = rules(min_tokens=2, logit_bias={7: 1.5})

    seen = [shifts(one)]
    for token_id in (7, 8):
        one.append(token_id)
        seen.append(shifts(one))

    barred = {7: 1.5, 1: -math.inf, 30: -math.inf}
    assert seen == [barred, barred, {7: 1.5}]


def test_bad_words_follow_the_output_and_not_the_prompt() -> None:
    one = rules([[5, 6], [9]])

    before = shifts(one)
    one.append(5)

    assert before == {9: -math.inf}
    assert shifts(one) == {9: -math.inf, 6: -math.inf}


def test_a_repetition_penalty_covers_prompt_and_output() -> None:
    one = rules(repetition_penalty=1.5)
    one.append(6)

    assert penalties(one) == {4: (1.5, 0.0), 5: (1.5, 0.0), 6: (1.5, 0.0)}


def test_presence_and_frequency_count_the_output_only() -> None:
    one = rules(presence_penalty=0.5, frequency_penalty=0.2)

    assert one.penalties() is None
    for token_id in (5, 6, 5):
        one.append(token_id)

    assert penalties(one) == {5: (1.0, 0.9), 6: (1.0, 0.7)}


def test_all_penalties_together_keep_the_prompt_free_of_presence() -> None:
    one = rules(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=-0.2)
    one.append(5)

    assert penalties(one) == {4: (2.0, 0.0), 5: (2.0, 0.3)}


def test_earlier_answers_are_not_changed_by_later_tokens() -> None:
    one = rules(presence_penalty=0.5)
    one.append(5)
    found = one.penalties()
    assert found is not None

    one.append(6)

    assert (found.token_ids.tolist(), found.deductions.tolist()) == ([5], [0.5])


def test_params_know_whether_rules_are_needed() -> None:
    plain = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.1, logprobs=3)
    asking = [{"min_tokens": 1}, {"logit_bias": {3: 1.0}}, {"bad_words": ["x"]}, {"presence_penalty": 0.1}]

    assert not plain.edits_logits
    assert all(SamplingParams(**one).edits_logits for one in asking)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_each_penalty_alone_is_one(name: str) -> None:
    assert SamplingParams(**{name: 1.1}).has_penalties  # type: ignore[arg-type]
    assert not SamplingParams().has_penalties

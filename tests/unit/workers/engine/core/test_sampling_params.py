"""Sampling parameters that cannot be served are refused with their value and the remedy."""

from __future__ import annotations

import math

import pytest

from workers.engine import SamplingParams
from workers.engine.core.errors import InvalidParams
from workers.engine.core.sampling_defaults import SamplingDefaults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give an integer of at least 1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5; give an integer"),
        ({"max_tokens": True}, "max_tokens is True; give an integer"),
        ({"temperature": -0.1}, "temperature is -0.1; give a number between 0.0 and 100.0"),
        ({"temperature": math.nan}, "temperature is nan; give a finite number"),
        ({"temperature": "hot"}, "temperature is 'hot'; give a finite number"),
        ({"top_p": 0.0}, r"top_p is 0; give a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1; give a number between"),
        ({"top_k": -2}, "top_k is -2; give an integer between -1 and 2147483647"),
        ({"top_k": 2**31}, "top_k is 2147483648; give an integer between -1 and 2147483647"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop_token_ids": [3, -4]}, "stop_token_ids is -4"),
        ({"stop": ""}, "stop string '' is not served; give 1 to 1000 characters"),
        ({"stop": ["fine", 7]}, "stop string 7 is not served"),
        ({"stop": ["x"] * 17}, "17 stop strings; give at most 16"),
        ({"n": 0}, "n is 0; give an integer between 1 and 128"),
        ({"n": 2, "temperature": 0.0}, "n is 2 with temperature 0, so that all would be equal; give n=1"),
        ({"min_p": 1.5}, "min_p is 1.5; give a number between 0.0 and 1.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; give a number between 0.01 and 100.0"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; give a number between -2.0 and 2.0"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; give a number between -2.0 and 2.0"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens is 9, above max_tokens \(8\); lower the first"),
        ({"logit_bias": [1]}, r"logit_bias is \[1\]; give a dict"),
        ({"logit_bias": {"5": 1.0}}, "a token id of logit_bias is '5'; give an integer"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101; give a number between -100.0 and 100.0"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias has 1025 entries; give at most 1024"),
        ({"bad_words": [""]}, "bad word '' is not served; give 1 to 1000 characters"),
        ({"bad_words": ["x"] * 1025}, "1025 bad words; give at most 1024"),
        ({"logprobs": 21}, "logprobs is 21; give an integer between 0 and 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1; give an integer between 0 and 20"),
        ({"ignore_eos": 1}, "ignore_eos is 1; give True or False"),
        ({"skip_special_tokens": None}, "skip_special_tokens is None; give True or False"),
    ],
)
def test_a_bad_value_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParams, match=message):
        SamplingParams(**settings)  # type: ignore[arg-type]


def test_one_stop_string_or_several_are_the_same_thing() -> None:
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop_strings == ("x", "y")
    assert SamplingParams().stop_strings == ()


def test_what_is_unset_and_nothing_else_is_filled_in_and_checked_again() -> None:
    model = SamplingDefaults(temperature=0.0, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.05)
    asked = SamplingParams(temperature=1.0, top_p=1, top_k=0, min_p=0, repetition_penalty=1.0)

    assert list(SamplingParams().effective(model).numbers.values()) == [0.0, 0.8, 20, 0.1, 1.05, 0.0, 0.0]
    assert list(asked.effective(model).numbers.values()) == [1.0, 1, 0, 0, 1.0, 0.0, 0.0]
    assert (SamplingParams().has_penalties, SamplingParams().effective(model).has_penalties) == (False, True)
    with pytest.raises(InvalidParams, match="n is 2 with temperature 0"):
        SamplingParams(n=2).effective(model)


def test_greedy_is_temperature_zero() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy

"""Sampling parameters that cannot be served are refused with their value and the remedy."""

from __future__ import annotations

import math

import pytest

from workers.engine import SamplingParams
from workers.engine.errors import InvalidParams


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
        ({"top_k": -2}, "top_k is -2; give an integer of at least -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop_token_ids": [3, -4]}, "stop_token_ids is -4"),
        ({"stop": ""}, "stop string '' is not served; give 1 to 1000 characters"),
        ({"stop": ["fine", 7]}, "stop string 7 is not served"),
        ({"stop": ["x"] * 17}, "17 stop strings; give at most 16"),
    ],
)
def test_a_bad_value_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParams, match=message):
        SamplingParams(**settings)  # type: ignore[arg-type]


def test_one_stop_string_or_several_are_the_same_thing() -> None:
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop_strings == ("x", "y")
    assert SamplingParams().stop_strings == ()


def test_greedy_is_temperature_zero() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy

"""An adapter's regular expressions mean what Python makes of them, and none of them can hold up a loader."""

from __future__ import annotations

import re

import pytest

from workers.engine.lora.files.patterns import PatternError, check, fullmatch

PATHS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.10.mlp.down_proj",
    "model.embed_tokens",
    "lm_head",
]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*layers\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)",
        r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)",
        r"(?i)LM_HEAD",
        r"model\.(layers\.\d+\.)+self_attn\.\w+",
        r"^(?!.*self_attn).*_proj$",
        r".*(?<=k)_proj",
        r"model.layers.(\d)\1?.*",
        r"[^]]*_head",
        r"[\w.]+",
        r"q_proj",
        r"",
    ],
)
def test_patterns_mean_what_python_makes_of_them(pattern: str) -> None:
    for path in PATHS:
        assert fullmatch(pattern, path) is (re.fullmatch(pattern, path) is not None)


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(.*)*x", r"((\w|\d)+\.?)+!", r"(a|a)*b"])
def test_patterns_that_would_backtrack_for_ever_are_matched_in_no_time(pattern: str) -> None:
    assert not fullmatch(pattern, "a" * 5000)


@pytest.mark.parametrize("pattern", [r"(?=x)(a+)+b", r"(a*)*\1c", r"(?!x).*.*.*.*b", r"a*+(b+)+c"])
def test_patterns_that_only_backtracking_serves_may_repeat_little(pattern: str) -> None:
    with pytest.raises(PatternError, match="no group, or matching it could take forever"):
        check(pattern)


@pytest.mark.parametrize("pattern", ["layers.(", "a**", "[", "(" * 1500, "(?P<n>a)(?P<n>b)"])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="is not a regular expression"):
        check(pattern)


def test_a_very_long_pattern_is_not_read() -> None:
    with pytest.raises(PatternError, match="it has 2001 characters"):
        check("a" * 2001)

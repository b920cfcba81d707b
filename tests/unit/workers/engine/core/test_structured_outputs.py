"""One grammar, of bounded size, refused with value and remedy before anything is compiled."""

from __future__ import annotations

from typing import Any

import pytest

from workers.engine.core.errors import InvalidParams
from workers.engine.structured_output import StructuredOutputsParams

DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has nothing; give exactly one of json, regex, choice and grammar"),
        ({"regex": "a", "choice": ["a"]}, "has regex, choice; give exactly one"),
        ({"json": "{"}, "the JSON schema cannot be read"),
        ({"json": "[1]"}, "not an object nested at most 64 deep"),
        ({"json": {"a": float("nan")}}, "the JSON schema cannot be read"),
        ({"json": {"a": object()}}, "the JSON schema cannot be read"),
        ({"json": "[" * 60_000}, "the JSON schema cannot be read"),
        ({"json": DEEP}, "not an object nested at most 64 deep"),
        ({"json": {"description": "x" * 70_000}}, "the json has 700"),
        ({"regex": "a" * 4097}, "the regex has 4097 bytes; give 1 to 4096"),
        ({"regex": ""}, "the regex has 0 bytes"),
        ({"regex": "\ud800"}, "the regex holds a lone surrogate at position 0"),
        ({"grammar": 7}, "grammar is int; give a string"),
        ({"grammar": "x" * 70_000}, "the grammar has 70000 bytes"),
        ({"choice": "abc"}, "choice is 'abc'; give a list of strings"),
        ({"choice": []}, "choice has 0 strings; give 1 to 1024"),
        ({"choice": ["a"] * 1025}, "choice has 1025 strings"),
        ({"choice": ["a", ""]}, "choice holds ''; give non-empty strings"),
    ],
)
def test_what_cannot_be_served_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        StructuredOutputsParams(**given)

    assert message in str(refused.value)


def test_a_schema_means_the_same_as_dict_and_as_text() -> None:
    schema = {"type": "string", "enum": ["é"]}

    as_dict, as_text = (
        StructuredOutputsParams(json=schema),
        StructuredOutputsParams(json='{"type":"string","enum":["é"]}'),
    )

    assert as_dict.source == as_text.source

"""Answers keep the grammar asked for, whatever the model would rather say; neighbours see nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import (
    EngineConfig,
    LLMEngine,
    LoRARequest,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

pytestmark = pytest.mark.numeric

TINY = Path(__file__).parents[4] / "examples" / "tiny"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "type": "array",
    "items": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"$ref": "#/$defs/node"}]},
    "minItems": 2,
    "maxItems": 4,
}


def slow(num_patterns: int) -> dict[str, Any]:
    """Small patterns that must hold all at once: llguidance 1.9.1 compiles forty for more than 40 s."""
    return {"json": {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}b"} for n in range(num_patterns)]}}


SUM = 'start: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/'
DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])"


@pytest.fixture(scope="module")
def engine(look_ahead: int) -> Iterator[LLMEngine]:
    """The shipped model with room for three adapters, and little patience with grammars."""
    config = EngineConfig(
        model=str(TINY / "base"), enable_lora=True, max_loras=3, num_threads=1, enable_prefix_caching=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "workers.engine.structured_output.compiler.CPU_S", 0
        )  # up to one second: seconds take long here
        engine = LLMEngine(config, look_ahead=look_ahead)
        yield engine
        engine.close()


def grammar(**given: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**given)


def params(given: StructuredOutputsParams | None, **changes: Any) -> SamplingParams:
    values: dict[str, Any] = {"max_tokens": 200, "temperature": 1.0, "seed": 5}
    return SamplingParams(structured_outputs=given, **(values | changes))


def lora(name: str, number: int) -> LoRARequest:
    return LoRARequest(name, number, str(TINY / "adapters" / name))


def keeps_form(output: RequestOutput, given: StructuredOutputsParams) -> bool:
    text = output.outputs[0].text
    if given.choice is not None:
        return text in given.choice
    if given.regex is not None:
        return re.fullmatch(given.regex, text) is not None
    if given.grammar is not None:
        return re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,3}", text) is not None
    value = json.loads(text)
    if given.json is TREE:
        return isinstance(value, list) and 2 <= len(value) <= 4 and all(map(is_tree_item, value))
    is_named = set(value) == {"name", "age", "tags"} and len(value["name"]) <= 6
    return (
        is_named and 0 <= value["age"] <= 130 and len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}
    )


def is_tree_item(item: object) -> bool:
    return item is None or isinstance(item, bool | dict)


FORMS = [
    grammar(json=PERSON),
    grammar(json=TREE),
    grammar(regex=DATE),
    grammar(choice=["yes", "no", 'it depends: "é" 世\n']),
    grammar(grammar=SUM),
]


@BOTH
def test_answers_of_a_mixed_batch_keep_their_grammars_and_neighbours_notice_nothing(
    engine: LLMEngine,
) -> None:
    adapters = [None, lora("upper", 1), lora("reverse", 2)]
    plain = [("hello>", params(None, temperature=0, max_tokens=12), adapters[n % 3]) for n in range(6)]
    formed = [
        ("hello>", params(given, seed=seed), adapters[seed % 3]) for seed in range(3) for given in FORMS
    ]

    alone = engine.generate(*map(list, zip(*plain, strict=True)))
    mixed = engine.generate(*map(list, zip(*plain, *formed, strict=True)))

    assert [one.outputs for one in mixed[: len(plain)]] == [one.outputs for one in alone]
    for output, (_, asked, _) in zip(mixed[len(plain) :], formed, strict=True):
        assert output.outputs[0].finish_reason == "stop", output
        assert asked.structured_outputs is not None
        assert keeps_form(output, asked.structured_outputs), output.outputs[0].text
    assert len({one.outputs[0].text for one in mixed[len(plain) :]}) > len(FORMS)


@BOTH
def test_a_grammar_that_can_only_end_ends_without_another_token(engine: LLMEngine) -> None:
    (output,) = engine.generate(["hello>"], params(grammar(regex="ab{2}"), temperature=0))

    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("abb", "stop")
    assert len(output.outputs[0].token_ids) == 3


@BOTH
def test_the_end_is_allowed_only_where_the_grammar_is_complete(engine: LLMEngine) -> None:
    (eos,) = (token for token in [2])
    bias = {eos: 100.0}

    outputs = engine.generate(
        ["hello>"] * 2, [params(grammar(regex="a{3}b*"), logit_bias=bias, temperature=0)] * 2
    )

    assert [output.outputs[0].text for output in outputs] == ["aaa", "aaa"]
    assert outputs[0].outputs[0].token_ids[-1] == eos


def test_max_tokens_may_cut_a_grammar_short(engine: LLMEngine) -> None:
    (output,) = engine.generate(["hello>"], params(grammar(json=PERSON), max_tokens=4))

    assert output.outputs[0].finish_reason == "length"


@BOTH
def test_each_completion_follows_the_grammar_for_itself(engine: LLMEngine) -> None:
    given = grammar(grammar=SUM)

    (output,) = engine.generate(["hello>"], params(given, n=4))

    texts = [completion.text for completion in output.outputs]
    assert all(re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,3}", text) for text in texts)
    assert len(set(texts)) > 1


@BOTH
def test_preemption_and_streams_do_not_lose_the_place_in_a_form(look_ahead: int) -> None:
    settings = {"num_kv_blocks": 10, "max_model_len": 128, "enable_prefix_caching": False}
    config = EngineConfig(model=str(TINY / "base"), num_threads=1, **settings)  # type: ignore[arg-type]
    small = LLMEngine(config, look_ahead=look_ahead)
    given = grammar(regex="(ab|ba){20,30}")
    for number in range(4):
        asked = params(given, seed=number, max_tokens=80, output_kind=RequestOutputKind.DELTA)
        small.add_request(f"{number}", "hello>", asked)
    told: list[RequestOutput] = []
    while small.has_unfinished_requests():
        told += small.step()
    small.close()

    assert small.stats().num_preemptions > 0
    for final in (output for output in told if output.finished):
        pieces = [one for one in told if one.request_id == final.request_id and not one.finished]
        assert "".join(piece.outputs[0].text for piece in pieces) == final.outputs[0].text
        assert re.fullmatch(given.regex or "", final.outputs[0].text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": {"type": "strin"}}, "the json is refused: Invalid type: strin"),
        ({"json": {"oneOf": [{"type": "string"}, {"minimum": 3}]}}, "the json is refused"),
        ({"regex": "a("}, "the regex is refused"),
        ({"grammar": "start: nothing"}, "the grammar is refused"),
        ({"json": {"$ref": "#"}}, "the json is refused"),
        ({"regex": "a{100000000}"}, "the regex is refused"),
        (slow(40), "of processor time or too much memory; simplify it"),
    ],
)
def test_a_hostile_or_wrong_grammar_fails_alone_while_others_go_on(
    engine: LLMEngine, given: dict[str, Any], message: str
) -> None:
    engine.add_request("bad", "hello>", params(grammar(**given)))
    engine.add_request("other", "hello>", params(None, max_tokens=3, ignore_eos=True))
    ended: dict[str, RequestOutput] = {}
    while "bad" not in ended:
        ended |= {output.request_id: output for output in engine.step()}
    while "other" not in ended:
        ended |= {output.request_id: output for output in engine.step()}

    error = ended["bad"].error
    assert error is not None
    assert (error.code, error.retryable) == ("invalid_params", False)
    assert message in error.message
    assert ended["other"].error is None
    (good,) = engine.generate(["hello>"], params(grammar(regex="ok")))
    assert good.outputs[0].text == "ok"


def test_others_go_on_while_a_grammar_is_compiled(engine: LLMEngine) -> None:
    engine.add_request("slow", "hello>", params(grammar(**slow(41))))

    outputs = engine.generate(["hello>"] * 3, params(None, max_tokens=20, ignore_eos=True))

    assert [len(output.outputs[0].token_ids) for output in outputs] == [20, 20, 20]
    assert engine.abort_request("slow") is not None

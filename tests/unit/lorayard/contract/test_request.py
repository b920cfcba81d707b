"""One request: what it says by default, and that every list beside it holds the same fields."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lorayard.contract import request as contract
from lorayard.contract.job import JobKeywords, JobSpec
from lorayard.contract.request import NEUTRAL, GenerationRequest, Message, RequestKeywords
from lorayard.contract.structured_outputs import StructuredOutputs
from workers.engine.core import sampling_params as engine
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.core.sampling_params import EffectiveParams
from workers.requests import NOT_SAMPLING, sampling_params

ROOT = Path(__file__).parents[4]
RECORDED_DEFAULTS: dict[str, Any] = {
    "prompt": None, "messages": None, "adapter_scale": 1.0, "max_tokens": 128, "temperature": 0.0,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": (), "stop_token_ids": (),
    "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}, "bad_words": (),
    "skip_special_tokens": True, "structured_outputs": None, "stream": False, "adapter": None,
    "priority": "normal", "deadline_s": None, "tenant": "default", "callback_url": None,
    "idempotency_key": None, "metadata": {},
}  # fmt: skip
"""What is left out of a message means this forever within version 1; add to it, change nothing.

Of the fields in `NEUTRAL` it is what they mean if the model has no default of its own.
"""


def default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def test_no_default_has_changed_and_none_is_missing_here() -> None:
    defaults = {name: default_of(field) for name, field in JobSpec.model_fields.items()}

    assert {name: defaults[name] for name in NEUTRAL} == dict.fromkeys(NEUTRAL)
    assert {**defaults, **NEUTRAL} == RECORDED_DEFAULTS


def test_none_is_never_anything_but_not_set() -> None:
    takes_none = [
        name for name, field in JobSpec.model_fields.items() if types.NoneType in get_args(field.annotation)
    ]

    assert takes_none
    assert all(default_of(JobSpec.model_fields[name]) is None for name in takes_none)


def test_every_field_says_what_it_does_and_what_to_give_instead() -> None:
    for name, field in JobSpec.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict), name
        assert str(field.json_schema_extra["remedy"]).startswith(("give ", "use ")), name


def test_every_field_has_its_counterpart_in_the_engine() -> None:
    params = set(engine.SamplingParams.__dataclass_fields__)

    assert set(GenerationRequest.model_fields) - NOT_SAMPLING <= params
    assert not NOT_SAMPLING & params
    # What a job cannot ask for; a new parameter is either a job's too, or named here.
    assert params - set(GenerationRequest.model_fields) == {"n", "logprobs", "prompt_logprobs", "output_kind"}


def test_a_job_with_nothing_but_a_prompt_stays_greedy_with_128_tokens() -> None:
    params = sampling_params(GenerationRequest(prompt="a"))

    assert (params.max_tokens, params.temperature, params.is_greedy) == (128, 0.0, True)
    assert not params.edits_logits
    alone = engine.SamplingParams()
    assert (alone.max_tokens, alone.temperature, alone.effective().temperature) == (16, None, 1.0)


def test_what_a_job_leaves_unset_means_the_same_here_and_in_an_engine_whose_model_says_nothing() -> None:
    numbers = sampling_params(GenerationRequest(prompt="a")).effective().numbers

    assert numbers == {name: RECORDED_DEFAULTS[name] for name in numbers}
    assert set(NEUTRAL) == {field.name for field in dataclasses.fields(SamplingDefaults)} - {"temperature"}


@pytest.mark.parametrize("fields", [{}, dict.fromkeys(NEUTRAL)])
def test_what_a_job_does_not_set_is_left_to_the_model_but_for_the_temperature(fields: dict[str, Any]) -> None:
    model = SamplingDefaults(0.7, 0.8, 20, 0.1, 1.05)
    request = GenerationRequest(prompt="a", **fields)

    params = sampling_params(GenerationRequest.model_validate_json(request.request_json())).effective(model)

    assert (params.temperature, params.is_greedy) == (0.0, True)
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (0.8, 20, 0.1, 1.05)


def test_a_neutral_value_that_a_job_sets_wins_over_the_models_on_all_of_its_way() -> None:
    request = GenerationRequest(prompt="a", temperature=1.0, **NEUTRAL)

    read = GenerationRequest.model_validate_json(request.request_json())

    params = sampling_params(read).effective(SamplingDefaults(0.7, 0.8, 20, 0.1, 1.05))
    assert params == EffectiveParams(max_tokens=128, stop=(), stop_token_ids=(), logit_bias={}, bad_words=())


def loosened(annotation: Any) -> Any:
    """What a caller may give for a field of this type."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kind, arms = get_origin(annotation), get_args(annotation)
    if kind in (Union, types.UnionType):
        return {one for arm in arms for one in loosened(arm)}
    if kind is tuple:
        return {Sequence[Message | Mapping[str, str] if arms[0] is Message else given(arms[0])]}  # type: ignore[misc]
    if kind is dict:
        of_json = arms[0] is str
        return {
            Mapping[str, Any] if of_json else Mapping[given(arms[0]), given(arms[1])],  # type: ignore[misc]
            *([None] * of_json),
        }
    if annotation is StructuredOutputs:
        return {StructuredOutputs, Mapping[str, Any]}
    return {None if annotation is types.NoneType else annotation}


def given(annotation: Any) -> Any:
    (one,) = loosened(annotation)
    return one


def arms_of(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return {None if arm is types.NoneType else arm for arm in get_args(annotation)}
    return {annotation}


@pytest.mark.parametrize(
    ("keywords", "model"), [(RequestKeywords, GenerationRequest), (JobKeywords, JobSpec)], ids=str
)
def test_the_keywords_of_submit_are_the_fields_with_their_types(keywords: Any, model: Any) -> None:
    hints = get_type_hints(keywords)

    assert set(hints) == set(model.model_fields) - {"prompt"}
    for name, hint in hints.items():
        assert arms_of(hint) == loosened(model.model_fields[name].annotation), name


LIMITS = (
    "MAX_STOP_STRINGS",
    "MAX_STOP_STRING_CHARS",
    "MAX_LOGIT_BIASES",
    "MAX_BAD_WORDS",
    "MAX_BAD_WORD_CHARS",
)


@pytest.mark.parametrize("name", [*LIMITS, "MAX_TEMPERATURE"])
def test_a_limit_is_the_same_for_a_job_and_for_the_engine(name: str) -> None:
    assert getattr(contract, name) == getattr(engine, name)


AT_THE_LIMIT: list[dict[str, Any]] = [
    {"temperature": 100}, {"top_p": 1}, {"top_k": 2**40}, {"min_p": 1}, {"seed": 2**63 - 1},
    {"stop": ["x" * 1000] * 16}, {"stop_token_ids": [2**31 - 1] * 64}, {"repetition_penalty": 0.01},
    {"repetition_penalty": 100}, {"presence_penalty": -2}, {"frequency_penalty": 2},
    {"max_tokens": 1_000_000, "min_tokens": 1_000_000}, {"bad_words": ["x" * 1000] * 1024},
    {"logit_bias": dict.fromkeys(range(1024), -100)},
]  # fmt: skip


@pytest.mark.parametrize("fields", AT_THE_LIMIT, ids=lambda fields: next(iter(fields)))
def test_what_a_job_may_ask_for_the_engine_takes(fields: dict[str, Any]) -> None:
    sampling_params(GenerationRequest(prompt="a", **fields))


def test_a_request_is_not_a_place_for_routing() -> None:
    with pytest.raises(ValidationError, match="tenant"):
        GenerationRequest(prompt="a", tenant="acme")  # type: ignore[call-arg]


def test_no_scheduler_and_no_sql_names_a_field_but_those_copied_into_the_row_of_a_job() -> None:
    """Told by the names that are no common words."""
    copied = {"max_tokens"}
    names = {name for name in GenerationRequest.model_fields if "_" in name or name == "temperature"} - copied
    named = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    files = [
        path for room in ("scheduler", "db/repositories", "db/models") for path in (ROOT / room).rglob("*.py")
    ]

    assert len(files) > 40
    assert [path.name for path in files if named.search(path.read_text())] == []

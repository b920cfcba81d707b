"""Every field of a job is checked before the job leaves the process, and what passes can be read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorayard.client.invalid_job import validated
from lorayard.contract.errors import InvalidJob
from lorayard.contract.ids import job_id_for, payload_sha256, uuid7
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.request import GenerationRequest
from lorayard.contract.storable import MAX_DEPTH


def nested(depth: int) -> dict[str, Any]:
    """Make a JSON object of this depth."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    # fields, what the message must show of the value, what it must say to do
    ({}, "exactly one", "prompt and messages"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "exactly one", "prompt and messages"),
    ({"prompt": ""}, "prompt=''", "give at least one character"),
    ({"prompt": "é" * 500_001}, "1000002 bytes", "shorten it"),
    ({"prompt": 5}, "prompt=5", "give a non-empty string"),
    ({"prompt": "a\x00b"}, "NUL character at position 1", "remove it"),
    ({"prompt": "ab\ud800"}, "lone surrogate at position 2", "re-decode the input as UTF-8"),
    ({"messages": []}, "messages is empty", "give at least one message"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role='robot'", "'system' | 'user'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "'content': text"),
    ({"messages": [{"role": "user", "content": "x" * 1_000_001}]}, "1000001 bytes", "shorten them"),
    ({"messages": "hello"}, "messages='hello'", "give a list"),
    ({"prompt": "a", "adapter": "a b"}, "adapter='a b'", "None for the base model"),
    ({"prompt": "a", "adapter": ""}, "adapter=''", "use 1 to 200 letters"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens=0", "from 1 to 1000000"),
    ({"prompt": "a", "max_tokens": 1_000_001}, "max_tokens=1000001", "from 1 to 1000000"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens=1.5", "whole number"),
    ({"prompt": "a", "max_tokens": 10**5000}, "an integer of 16610 bits", "from 1 to 1000000"),
    ({"prompt": "a", "adapter": "a", "adapter_scale": float("inf")}, "adapter_scale=inf", "from -100 to 100"),
    (
        {"prompt": "a", "adapter": "a", "adapter_scale": 101},
        "adapter_scale=101",
        "1 for the adapter as trained",
    ),
    (
        {"prompt": "a", "adapter_scale": 0.5},
        "adapter_scale=0.5 without an adapter",
        "name one, or leave it out",
    ),
    ({"prompt": "a", "temperature": -0.1}, "temperature=-0.1", "from 0 (greedy) to 100"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature=nan", "from 0 (greedy) to 100"),
    ({"prompt": "a", "temperature": 101}, "temperature=101", "from 0 (greedy) to 100"),
    ({"prompt": "a", "top_p": 0}, "top_p=0", "above 0 and up to 1"),
    ({"prompt": "a", "top_p": 1.1}, "top_p=1.1", "above 0 and up to 1"),
    ({"prompt": "a", "structured_outputs": {}}, "structured_outputs", "exactly one of json, regex"),
    ({"prompt": "a", "structured_outputs": {"regex": "a", "json": {}}}, "json, regex given", "exactly one"),
    ({"prompt": "a", "structured_outputs": {"regex": "a" * 4097}}, "the regex has 4097", "at most 4096"),
    ({"prompt": "a", "structured_outputs": {"grammar": "a" * 65_537}}, "65537 bytes", "at most 65536"),
    ({"prompt": "a", "structured_outputs": {"choice": ["x" * 61] * 1024}}, "65537", "at most 65536"),
    ({"prompt": "a", "structured_outputs": {"json": "[1]"}}, "the json is a list", "a JSON object"),
    ({"prompt": "a", "structured_outputs": {"json": "{"}}, "cannot be read as JSON", "or its JSON text"),
    ({"prompt": "a", "structured_outputs": {"json": "[" * 60_000}}, "recursion", "or its JSON text"),
    ({"prompt": "a", "structured_outputs": {"json": '{"a": NaN}'}}, "json holds nan", "null or a string"),
    ({"prompt": "a", "structured_outputs": {"json": '{"a":' * 65 + "1" + "}" * 65}}, "64 deep", "flatten"),
    ({"prompt": "a", "structured_outputs": {"json": {"a": "x" * 65_530}}}, "65538 bytes", "at most 65536"),
    ({"messages": [{"role": "user", "content": "a"}] * 4097}, "4097", "at most 4096"),
    ({"prompt": "a", "top_k": -1}, "top_k=-1", "0 to keep every token"),
    ({"prompt": "a", "seed": -1}, "seed=-1", "from 0 to 2**63 - 1"),
    ({"prompt": "a", "seed": 2**63}, "seed=9223372036854775808", "from 0 to 2**63 - 1"),
    ({"prompt": "a", "stop": "end"}, "stop='end'", "give a list"),
    ({"prompt": "a", "stop": [""]}, "stop.0=''", "non-empty strings"),
    ({"prompt": "a", "stop": ["x"] * 17}, "17", "at most 16"),
    ({"prompt": "a", "stop": ["x" * 1001]}, "stop.0='xxx", "at most 1000 characters"),
    ({"prompt": "a", "min_p": 1.5}, "min_p=1.5", "from 0 to 1"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty=0", "1 for none"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty=3", "from -2 to 2"),
    ({"prompt": "a", "frequency_penalty": float("nan")}, "frequency_penalty=nan", "from -2 to 2"),
    ({"prompt": "a", "min_tokens": -1}, "min_tokens=-1", "from 0 to max_tokens"),
    (
        {"prompt": "a", "min_tokens": 9, "max_tokens": 8},
        "min_tokens=9 is above max_tokens=8",
        "lower the first",
    ),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids.0=-1", "at most 64 token ids"),
    ({"prompt": "a", "ignore_eos": "maybe"}, "ignore_eos='maybe'", "true or false"),
    ({"prompt": "a", "logit_bias": {5: 101}}, "logit_bias.5=101", "from -100 to 100"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x", "token ids"),
    ({"prompt": "a", "bad_words": [""]}, "bad_words.0=''", "non-empty strings"),
    ({"prompt": "a", "bad_words": ["x"] * 1025}, "1025", "at most 1024 non-empty strings"),
    ({"prompt": "a", "bad_words": ["x" * 1001]}, "bad_words.0='xxx", "at most 1000 characters"),
    ({"prompt": "a", "bad_words": ["a\x00"]}, "NUL character at position 1", "remove it"),
    ({"prompt": "a", "priority": "urgent"}, "priority='urgent'", "'high', 'normal' or 'low'"),
    ({"prompt": "a", "deadline_s": 0}, "deadline_s=0", "above 0 and up to 2592000"),
    ({"prompt": "a", "deadline_s": float("inf")}, "deadline_s=inf", "up to 2592000"),
    ({"prompt": "a", "tenant": ""}, "tenant=''", "use 1 to 200 letters"),
    ({"prompt": "a", "tenant": "a\n"}, "tenant='a\\n'", "use 1 to 200 letters"),
    ({"prompt": "a", "callback_url": "example.com"}, "'example.com'", "https://example.com/hook"),
    ({"prompt": "a", "callback_url": "ftp://example.com/x"}, "'ftp://example.com/x'", "https://example.com"),
    ({"prompt": "a", "callback_url": "http://"}, "'http://'", "https://example.com/hook"),
    ({"prompt": "a", "callback_url": "http://[::1"}, "'http://[::1'", "https://example.com/hook"),
    ({"prompt": "a", "callback_url": "http://host:port/"}, "'http://host:port/'", "https://example.com/hook"),
    ({"prompt": "a", "callback_url": "http://a/" + "x" * 2048}, "'http://a/xxx", "at most 2048 characters"),
    ({"prompt": "a", "idempotency_key": ""}, "idempotency_key=''", "give 1 to 500 characters"),
    ({"prompt": "a", "idempotency_key": "k\x00"}, "NUL character at position 1", "remove it"),
    ({"prompt": "a", "metadata": [1]}, "metadata=[1]", "give a dict"),
    ({"prompt": "a", "metadata": {1: 2}}, "metadata.1", "string keys"),
    ({"prompt": "a", "metadata": {"k": float("nan")}}, "holds nan", "use null or a string"),
    ({"prompt": "a", "metadata": {"k": [{"l": float("inf")}]}}, "holds inf", "use null or a string"),
    ({"prompt": "a", "metadata": {"k": "\x00"}}, "NUL character", "remove it"),
    ({"prompt": "a", "metadata": {"\ud800": 1}}, "lone surrogate", "re-decode"),
    ({"prompt": "a", "metadata": {"k": object()}}, "metadata.k=<object", "JSON values"),
    ({"prompt": "a", "metadata": {"k": -(2**1024)}}, "an integer of 1025 bits", "use a string"),
    ({"prompt": "a", "metadata": {"k": 10**5000}}, "an integer of 16610 bits", "use a string"),
    ({"prompt": "a", "metadata": nested(MAX_DEPTH + 1)}, "nested more than 64 deep", "flatten it"),
    ({"prompt": "a", "metadata": nested(5_000)}, "metadata.a.", "nested at most 64 deep"),
    ({"prompt": "a", "metadata": {"k": "x" * 20_000}}, "20008 bytes", "store a reference"),
    ({"prompt": "a", "temprature": 0.5}, "temprature=0.5", "did you mean 'temperature'?"),
    ({"prompt": "a", "frobnicate": 1}, "frobnicate=1", "the fields are prompt, messages"),
]


@pytest.mark.parametrize(
    ("fields", "value", "remedy"),
    BAD_FIELDS,
    ids=[f"{value[:30]}-{number}" for number, (_, value, _) in enumerate(BAD_FIELDS)],
)
def test_a_bad_field_is_refused_with_its_value_and_the_remedy(
    fields: dict[str, Any], value: str, remedy: str
) -> None:
    with pytest.raises(InvalidJob) as raised:
        validated(fields)

    message = str(raised.value)
    assert value in message
    assert remedy in message
    assert len(message) < 700


def test_several_bad_fields_are_told_at_once() -> None:
    with pytest.raises(InvalidJob, match=r"max_tokens=0.*; temperature=-1"):
        validated({"prompt": "a", "max_tokens": 0, "temperature": -1})


def test_what_is_no_job_at_all_is_refused() -> None:
    with pytest.raises(InvalidJob, match="not 5: give a dict"):
        validated(5)  # type: ignore[arg-type]


def test_an_invalid_job_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="the job is invalid"):
        validated({})


def test_a_job_spec_passes_unchanged() -> None:
    spec = JobSpec(prompt="a")

    assert validated(spec) is spec


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    prompt=st.text(st.characters(codec=None)),
    metadata=st.dictionaries(st.text(), JSON, max_size=4),
    stop=st.lists(st.text(), max_size=3),
)
def test_what_is_accepted_can_be_read_by_the_scheduler(
    prompt: str, metadata: dict[str, Any], stop: list[str]
) -> None:
    try:
        spec = validated({"prompt": prompt, "metadata": metadata, "stop": stop})
    except InvalidJob:
        return
    envelope = JobEnvelope(
        job_id=job_id_for(spec), submission_id=uuid7(), payload_sha256=payload_sha256(spec, "tiny"), spec=spec
    )

    read = JobEnvelope.from_entry(envelope.to_entry())

    assert read == envelope


def test_a_request_comes_back_from_json_and_only_what_was_set_is_written() -> None:
    asked = {"prompt": "a", "logit_bias": {5: -1.5}, "bad_words": ["x"], "ignore_eos": True}
    spec = validated(asked | {"tenant": "acme", "metadata": {"n": 1}})

    read = JobSpec.model_validate_json(spec.model_dump_json())

    assert read == spec
    assert json.loads(spec.request_json()) == asked | {"logit_bias": {"5": -1.5}}
    kept = GenerationRequest.model_validate_json(spec.request_json())
    assert (kept.logit_bias, kept.bad_words, kept.ignore_eos) == ({5: -1.5}, ("x",), True)
    assert JobSpec(prompt="a", seed=None, messages=None).request_json() == '{"prompt":"a"}'


@pytest.mark.parametrize("number", [2**1024 - 1, -(2**70), 1e300, 0.1])
def test_numbers_of_metadata_come_back_as_they_were(number: float) -> None:
    spec = validated({"prompt": "a", "metadata": {"n": number}})

    assert JobSpec.model_validate_json(spec.model_dump_json()).metadata == {"n": number}


@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_the_deepest_metadata_allowed_can_be_read_again(depth: int) -> None:
    spec = validated({"prompt": "a", "metadata": nested(depth)})

    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_copy_of_a_job_with_other_values_is_checked_like_any_other() -> None:
    copy = JobSpec(prompt="a").model_copy(update={"max_tokens": 2_000_000})

    with pytest.raises(InvalidJob, match="max_tokens=2000000"):
        validated(copy)
    assert validated(JobSpec(prompt="a", top_k=None, stop=("b",))).model_fields_set == {
        "prompt",
        "top_k",
        "stop",
    }

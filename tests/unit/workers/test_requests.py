"""From a job to what the engine is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from db.records import JobAttempt
from lorayard.contract.reading import UnreadableRequest
from tests.unit.workers.batch_jobs import REVISION, batch_job
from workers.engine.core.composition import unscaled
from workers.engine.core.errors import InvalidParams
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.sampling_params import RequestOutputKind
from workers.engine.structured_output import StructuredOutputsParams
from workers.requests import AdapterIds, add_request, parse_request_id, request_id

STORE = Path("/store")


def test_the_form_of_a_job_s_answer_goes_to_the_engine() -> None:
    adapters = AdapterIds(Path("/store"))
    forms = [{"choice": ["a", "b"]}, {"json_schema": {"type": "null"}}, None]

    asked = [
        add_request(batch_job(structured_outputs=one), adapters).params.structured_outputs for one in forms
    ]

    assert asked == [
        StructuredOutputsParams(choice=("a", "b")),
        StructuredOutputsParams(json={"type": "null"}),
        None,
    ]


def test_a_job_that_streams_has_its_tokens_told_one_by_one() -> None:
    adapters = AdapterIds(Path("/store"))

    kinds = [add_request(batch_job(stream=stream), adapters).params.output_kind for stream in (True, False)]

    assert kinds == [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY]


def test_a_request_id_names_the_attempt_and_reads_back() -> None:
    key = JobAttempt(uuid4(), 12)

    assert parse_request_id(request_id(key)) == key


def test_a_revision_keeps_its_number_whatever_its_name() -> None:
    adapters = AdapterIds(STORE)

    first = adapters.request(REVISION, "upper")
    other = adapters.request("sha256:" + "cd" * 32, "upper")
    again = adapters.request(REVISION, "alias")

    assert first.lora_int_id == again.lora_int_id == 1
    assert other.lora_int_id == 2
    assert first.lora_path == str(STORE / ("ab" * 32))
    assert first.revision == REVISION
    assert first.base_model_name == ""  # names were compared when the revision was added


def test_sampling_parameters_reach_the_engine() -> None:
    job = batch_job(max_tokens=5, temperature=0.5, top_p=0.9, top_k=3, seed=7, stop=("x", "y"))

    params = add_request(job, AdapterIds(STORE)).params

    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (5, 0.5, 0.9, 3)
    assert params.seed == 7
    assert params.stop == ("x", "y")


def test_every_sampling_option_reaches_the_engine_under_its_own_name() -> None:
    options: dict[str, Any] = {
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "min_tokens": 2,
        "stop_token_ids": (5, 6),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logit_bias": {7: -2.5},
        "bad_words": ("no",),
    }

    params = add_request(batch_job(**options), AdapterIds(STORE)).params

    assert {name: getattr(params, name) for name in options} == options


def test_jobs_that_set_the_same_share_their_parameters_and_others_do_not() -> None:
    adapters = AdapterIds(STORE)

    def params(**asked: Any) -> Any:
        return add_request(batch_job(**asked), adapters).params

    assert params(max_tokens=5, seed=1) is params(max_tokens=5, seed=1)
    assert params(max_tokens=5, seed=1) is not params(max_tokens=5, seed=2)
    assert params(max_tokens=5) == params(max_tokens=5, logit_bias={}, stop=())
    assert params(max_tokens=5, stream=True) != params(max_tokens=5)
    assert params(logit_bias={3: 1.0}) == params(logit_bias={3: 1.0})
    assert params(logit_bias={3: 1.0}).logit_bias is not params(logit_bias={3: 1.0}).logit_bias


def test_a_job_without_options_asks_the_engine_for_its_defaults() -> None:
    params = add_request(batch_job(max_tokens=5, temperature=0.0), AdapterIds(STORE)).params

    assert not params.edits_logits
    assert (params.min_p, params.ignore_eos, params.skip_special_tokens) == (None, False, True)


def test_an_adapters_scale_reaches_the_engine_and_is_no_part_of_its_identity() -> None:
    adapters = AdapterIds(STORE)

    lora = add_request(batch_job(adapter_scale=0.25), adapters).lora
    plain = add_request(batch_job(), adapters).lora

    assert isinstance(lora, LoRARequest)
    assert lora.scale == 0.25
    assert unscaled(lora) == plain == adapters.request(REVISION, "upper")


def test_messages_go_as_plain_mappings_and_the_base_model_without_an_adapter() -> None:
    job = batch_job(messages=[{"role": "user", "content": "hi"}], adapter=None, revision=None)

    request = add_request(job, AdapterIds(STORE))

    assert request.prompt is None
    assert request.messages == [{"role": "user", "content": "hi"}]
    assert request.lora is None


LARGEST = [
    ("regex", "a" * 4096, "a" * 4097),
    ("grammar", "a" * 65_536, "a" * 65_537),
    ("grammar", "\n" * 65_536, "ü" * 32_769),
    ("choice", ["x" * 61] * 1023 + ["x" * 59], ["x" * 61] * 1023 + ["x" * 61]),
    ("json", {"a": "x" * 65_528}, {"a": "x" * 65_529}),
    ("json", {"a": "\x01" * 10_919, "b": 1e300}, {"a": "\x01" * 10_920, "b": 1e300}),
    ("json", '{"a": 1}' + " " * 65_528, '{"a": 1}' + " " * 65_529),
    ("json", '{"a": ' * 64 + "1" + "}" * 64, '{"a": ' * 65 + "1" + "}" * 65),
    ("json", "{}", "[]"),
    ("json", '{"a": null}', '{"a": NaN}'),
    ("json", '{"a": "\\u00e9"}', '{"a": "\\ud800"}'),
]


@pytest.mark.parametrize(("form", "taken", "refused"), LARGEST, ids=range(len(LARGEST)))
def test_a_form_that_the_contract_takes_is_taken_by_the_engine_and_what_it_refuses_refused(
    form: str, taken: Any, refused: Any
) -> None:
    asked = add_request(batch_job(structured_outputs={form: taken}), AdapterIds(STORE))

    given: dict[str, Any] = {form: tuple(taken) if isinstance(taken, list) else taken}
    assert asked.params.structured_outputs == StructuredOutputsParams(**given)
    with pytest.raises(UnreadableRequest, match="structured_outputs"):
        add_request(batch_job(structured_outputs={form: refused}), AdapterIds(STORE))
    with pytest.raises(InvalidParams):
        StructuredOutputsParams(**{form: refused})


def test_a_job_shares_cached_prefixes_with_all_or_with_its_tenant_only() -> None:
    job = batch_job(tenant="acme")

    assert add_request(job, AdapterIds(STORE)).cache_salt is None
    assert add_request(job, AdapterIds(STORE), caches_by_tenant=True).cache_salt == "acme"

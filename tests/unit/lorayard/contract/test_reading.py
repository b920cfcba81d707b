"""Releases side by side: what an older or a newer one wrote is read as it was meant, or refused alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from lorayard.contract.ids import is_same_payload, job_id_for, payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import (
    BODY_FIELD,
    MAX_JOB_BYTES,
    WRITER_FIELD,
    BatchJob,
    CatalogueEntry,
    Command,
    JobEnvelope,
    JobReply,
    MicroBatch,
    Report,
    TokenEntry,
    WorkerEvent,
)
from lorayard.contract.reading import (
    UNREADABLE_PROMPT,
    UnreadableRequest,
    read_request,
    receive_job,
    unreadable_reply,
)
from lorayard.contract.request import NEUTRAL, GenerationRequest
from lorayard.contract.version import RELEASE

RECORDED = Path(__file__).parents[3] / "recorded" / "messages" / "v0_1"
ENVELOPES = sorted((RECORDED / "job_envelope").glob("*.json"))
REPORTS: dict[str, type[Report]] = {
    "worker_event": WorkerEvent, "job_reply": JobReply, "command": Command,
    "catalogue_entry": CatalogueEntry, "token_entry": TokenEntry,
}  # fmt: skip
ID = str(UUID(int=7))
MODEL = "tiny"


def entry(writer: str = "9.1.0", beside: dict[str, Any] | None = None, **spec: Any) -> dict[bytes, bytes]:
    body = {
        "v": 1, "job_id": ID, "submission_id": ID, "payload_sha256": "9:x", "reply_to": "client-1",
        "spec": spec, **(beside or {}),
    }  # fmt: skip
    return {BODY_FIELD: json.dumps(body).encode(), WRITER_FIELD: writer.encode()}


@pytest.mark.parametrize("path", ENVELOPES, ids=lambda path: path.stem)
def test_a_recorded_job_is_written_again_with_fewer_words_and_the_same_meaning(path: Path) -> None:
    """What a release of the recorded one reads, it reads the same: no key it lacks, no value changed."""
    old = json.loads(path.read_bytes())
    envelope, refusal = receive_job({BODY_FIELD: path.read_bytes()})
    chosen = envelope.spec.model_dump(exclude_defaults=True)

    written = json.loads(envelope.model_copy(update={"spec": JobSpec(**chosen)}).to_body())

    assert refusal is None
    assert set(written) <= set(old)
    assert set(written["spec"]) <= set(old["spec"])
    for name, value in written["spec"].items():
        wanted = old["spec"][name]
        if name == "structured_outputs":
            wanted = {form: text for form, text in wanted.items() if text is not None}
        assert value == wanted, name
    left_out = JobSpec.model_validate(written["spec"])
    assert left_out == envelope.spec


@pytest.mark.parametrize("path", ENVELOPES, ids=lambda path: path.stem)
def test_a_recorded_job_is_the_same_payload_when_its_producer_submits_it_after_an_upgrade(path: Path) -> None:
    envelope = JobEnvelope.model_validate_json(path.read_bytes())
    old, spec = envelope.payload_sha256, envelope.spec
    again = JobSpec(**spec.model_dump(exclude_defaults=True))
    other = again.model_copy(update={"max_tokens": again.max_tokens + 1})

    assert is_same_payload(old, payload_sha256(again, MODEL), again, MODEL)
    assert is_same_payload(payload_sha256(again, MODEL), old, spec, MODEL)
    assert not is_same_payload(old, payload_sha256(other, MODEL), other, MODEL)
    assert not is_same_payload(payload_sha256(other, MODEL), old, spec, MODEL)
    if spec.idempotency_key is not None:
        assert job_id_for(again) == envelope.job_id


def test_a_default_spelled_out_is_the_same_payload() -> None:
    spec = JobSpec(prompt="a")
    digest = payload_sha256(spec, MODEL)

    assert payload_sha256(JobSpec(prompt="a", temperature=0.0, stop=()), MODEL) == digest
    assert not is_same_payload("9:abc", digest, spec, MODEL)


def test_what_is_left_to_the_model_is_another_payload_than_a_value_spelled_out() -> None:
    unset, spelled_out = JobSpec(prompt="a"), JobSpec(prompt="a", repetition_penalty=1.0)
    digests = [payload_sha256(spec, MODEL) for spec in (unset, spelled_out, JobSpec(prompt="a", top_p=None))]
    by_rule_2 = "2:732acbb3e402e912437dbe53442ca54368b45e73c284acbf4c0530fac53cca74"  # of either

    assert digests[0] == digests[2] != digests[1]
    assert is_same_payload(by_rule_2, digests[0], unset, MODEL)
    assert is_same_payload(by_rule_2, digests[1], spelled_out, MODEL)


def test_a_key_of_the_release_before_stands_for_the_same_payload_and_no_other() -> None:
    by_rule_3 = "3:2ea1a30d2bc9f20ed2b62c2c2c8907ee46b9913fea951ff487be93611ee1961f"
    spec, other = JobSpec(prompt="a", max_tokens=7), JobSpec(prompt="a", max_tokens=8)

    assert is_same_payload(by_rule_3, payload_sha256(spec, MODEL), spec, MODEL)
    assert not is_same_payload(by_rule_3, payload_sha256(other, MODEL), other, MODEL)


def test_a_job_that_was_read_in_part_is_compared_by_its_own_digest_alone() -> None:
    spec = JobSpec(prompt="a")
    digest = payload_sha256(spec, MODEL)

    assert is_same_payload(digest, digest, None, MODEL)
    assert not is_same_payload(digest, "5:of a later rule", None, MODEL)


@pytest.mark.parametrize("path", ENVELOPES, ids=lambda path: path.stem)
def test_a_recorded_job_has_set_whatever_it_says_neutral_values_included(path: Path) -> None:
    spec = JobEnvelope.model_validate_json(path.read_bytes()).spec

    assert {getattr(spec, name) is None for name in NEUTRAL} == {False}
    assert json.loads(spec.request_json()).keys() >= NEUTRAL.keys()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"prompt": "a", "typical_p": 0.5}, "'typical_p'"),
        ({"prompt": "a", "structured_outputs": {"regex": "a", "xml": "b"}}, "'structured_outputs.xml'"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "'messages.0.tool_calls'"),
        ({"prompt": "a", "beside": {"trace": 1}}, "'trace'"),
        ({"prompt": "a", "one": 1, "two": 2}, "'one', 'two'"),
        ({"prompt": "a", "\x00": 1}, "'\\x00'"),
    ],
)
def test_a_job_of_a_later_release_is_refused_by_the_names_of_its_fields(
    given: dict[str, Any], named: str
) -> None:
    envelope, refusal = receive_job(entry(tenant="acme", **given))

    assert refusal is not None
    assert refusal.code == "unsupported_field"
    assert (
        f"not known here: {named}; it was written by lorayard 9.1.0, this is lorayard {RELEASE}: upgrade"
        in refusal.message
    )
    assert (str(envelope.job_id), envelope.reply_to, envelope.spec.tenant) == (ID, "client-1", "acme")
    assert envelope.spec.prompt_bytes == 1


def test_a_job_whose_input_is_of_a_kind_not_known_is_refused_and_keeps_its_routing() -> None:
    envelope, refusal = receive_job(entry(prompt_token_ids=[1, 2], tenant="acme", metadata={"n": 1}))

    assert refusal is not None
    assert "prompt_token_ids" in refusal.message
    assert (envelope.spec.tenant, envelope.spec.metadata) == ("acme", {"n": 1})
    assert envelope.spec.prompt == UNREADABLE_PROMPT


def test_a_writer_that_does_not_name_itself_is_told_as_such() -> None:
    fields = entry(prompt="a", later=1)
    del fields[WRITER_FIELD]

    refusal = receive_job(fields).refusal

    assert refusal is not None
    assert "written by a lorayard that gave no release" in refusal.message


@pytest.mark.parametrize(
    ("given", "named", "kept"),
    [
        ({"prompt": "a", "max_tokens": 2_000_000}, "max_tokens: Input should be less", {"prompt": "a"}),
        ({"prompt": "a", "max_tokens": 2_000_000, "later": 1}, "'later'", {"prompt": "a"}),
        ({"prompt": "a", "stop": ["b"] * 99}, "stop: Tuple should have at most 16", {"prompt": "a"}),
        ({"prompt": "a", "priority": "urgent"}, "priority: Input should be 'high'", {"priority": "normal"}),
        ({"prompt": "a", "deadline_s": 1e9}, "deadline_s: Input should be less", {"deadline_s": None}),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", {"prompt": UNREADABLE_PROMPT}),
        ({"prompt": "", "callback_url": "https://a.b"}, "prompt: the", {"callback_url": "https://a.b"}),
        ({"prompt": "a", "callback_url": "ftp://a.b"}, "callback_url: callback_url", {"callback_url": None}),
        ({"prompt": "a", "min_tokens": 900}, "the job: min_tokens=900 is above", {"min_tokens": 0}),
        ({"prompt": "a", "metadata": {"a": "x" * 20_000}}, "the job: metadata has", {"metadata": {}}),
        ({"prompt": "a", "structured_outputs": {"regex": "a" * 5000}}, "structured_outputs", {"prompt": "a"}),
    ],
)
def test_a_job_with_a_value_out_of_bounds_is_refused_and_can_be_answered(
    given: dict[str, Any], named: str, kept: dict[str, Any]
) -> None:
    envelope, refusal = receive_job(entry(tenant="acme", **given))

    assert refusal is not None
    assert refusal.code == ("unsupported_field" if "later" in given else "unsupported_value")
    assert named in refusal.message
    assert f"written by lorayard 9.1.0, this is lorayard {RELEASE}" in refusal.message
    assert (str(envelope.job_id), envelope.reply_to, envelope.spec.tenant) == (ID, "client-1", "acme")
    assert {name: getattr(envelope.spec, name) for name in kept} == kept


def test_an_entry_that_is_no_job_is_answered_if_it_says_whom() -> None:
    addressed = unreadable_reply(entry(prompt="a", tenant="a b"), "spec.tenant: it has a blank")
    too_large = entry(prompt="a" * MAX_JOB_BYTES)

    assert addressed is not None
    client, reply = addressed
    assert (client, str(reply.job_id), str(reply.submission_id)) == ("client-1", ID, ID)
    assert reply.result is not None
    assert reply.result.error is not None
    assert (reply.result.state, reply.result.error.code) == ("rejected", "unreadable_job")
    assert "it has a blank" in reply.result.error.message
    for fields in (entry(beside={"reply_to": None}), {b"other": b"1"}, {BODY_FIELD: b"{"}, too_large):
        assert unreadable_reply(fields, "") is None
    with pytest.raises(ValueError, match=f"at most {MAX_JOB_BYTES}"):
        receive_job(too_large)


@pytest.mark.parametrize(
    "fields",
    [
        entry(prompt="a", beside={"v": 2}),
        entry(tenant="a b", later=1, prompt="a"),
        entry(prompt="a", beside={"job_id": "x"}),
        entry(beside={"later": 1, "spec": "none"}),
    ],
)
def test_what_is_wrong_beyond_unknown_fields_is_no_job(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="JobEnvelope"):
        receive_job(fields)


def batch_job(**changes: Any) -> BatchJob:
    values: dict[str, Any] = {
        "job_id": ID, "attempt": 1, "tenant": "t", "adapter": None, "revision": None,
        "request": {"prompt": "a"}, "queue_ms": 1, "reply_to": None, "has_callback": False,
        "writer": "9.1.0",
    }  # fmt: skip
    return BatchJob.model_validate(values | changes)


@pytest.mark.parametrize(
    "changes",
    [{"request": {"prompt": "a", "typical_p": 0.5}}, {"typical_p": 0.5}],
    ids=["in the request", "beside it"],
)
def test_a_worker_refuses_a_job_with_a_field_it_does_not_know(changes: dict[str, Any]) -> None:
    job = batch_job(**changes)

    with pytest.raises(
        UnreadableRequest, match=r"'typical_p'; it was written by lorayard 9\.1\.0, this is"
    ) as raised:
        read_request(job)
    assert raised.value.code == "unsupported_field"


def test_a_worker_refuses_a_value_that_only_a_later_release_takes() -> None:
    with pytest.raises(
        UnreadableRequest, match=r"temperature: .* 9\.1\.0, .*upgrade the workers first"
    ) as raised:
        read_request(batch_job(request={"prompt": "a", "temperature": 1e6}))

    assert raised.value.code == "unsupported_value"


@pytest.mark.parametrize(
    "path", sorted((RECORDED / "micro_batch").glob("*.json")), ids=lambda path: path.stem
)
def test_the_jobs_of_a_recorded_micro_batch_are_those_that_were_submitted(path: Path) -> None:
    submitted = {
        envelope.job_id: envelope.spec
        for envelope in (JobEnvelope.model_validate_json(one.read_bytes()) for one in ENVELOPES)
    }

    for job in MicroBatch.model_validate(json.loads(path.read_bytes())).jobs:
        spec = submitted[job.job_id]
        assert read_request(job) == GenerationRequest(
            **{name: getattr(spec, name) for name in asked_of(spec)}
        )
        assert (job.tenant, job.adapter, job.metadata) == (spec.tenant, spec.adapter, spec.metadata)


def asked_of(spec: JobSpec) -> set[str]:
    return set(GenerationRequest.model_fields) & spec.model_fields_set


ASKED_FOR = {"job_reply": {"queue_position", "eta_s"}}
"""What is told only to readers that ask for it, in a way that a scheduler of before passes over."""


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_of_a_later_release_is_read_without_what_is_new(kind: str) -> None:
    for path in (RECORDED / kind).glob("*.json"):
        told = json.loads(path.read_bytes())

        read = REPORTS[kind].from_entry({BODY_FIELD: json.dumps(told | {"of_later": [1]}).encode()})

        assert read == REPORTS[kind].from_entry({BODY_FIELD: json.dumps(told).encode()})


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_is_written_with_no_word_that_the_recorded_release_does_not_know(kind: str) -> None:
    """Its readers refused unknown fields, so the new release may leave out, but add only for who asks."""
    known = {name for path in (RECORDED / kind).glob("*.json") for name in json.loads(path.read_bytes())}
    for path in (RECORDED / kind).glob("*.json"):
        told = REPORTS[kind].from_entry({BODY_FIELD: path.read_bytes()})

        assert set(REPORTS[kind].model_fields) - ASKED_FOR.get(kind, set()) <= known
        assert json.loads(told.to_body())["v"] == 1
        assert set(json.loads(told.to_body())) <= known


def test_what_was_not_set_is_not_written() -> None:
    spec = JobSpec(prompt="a", tenant="acme")
    envelope = JobEnvelope(job_id=ID, submission_id=ID, payload_sha256="x", spec=spec)

    assert json.loads(envelope.to_body()) == {
        "v": 1, "job_id": ID, "submission_id": ID, "payload_sha256": "x",
        "spec": {"prompt": "a", "tenant": "acme"},
    }  # fmt: skip

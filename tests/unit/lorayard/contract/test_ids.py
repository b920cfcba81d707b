"""Ids name jobs: fresh ones never meet, and the same key always gives the same one."""

from __future__ import annotations

import re
import time
from typing import Any
from uuid import RFC_4122

import pytest

from lorayard.contract.ids import job_id_for, payload_sha256, uuid7
from lorayard.contract.job import JobSpec


def test_a_fresh_id_is_a_version_7_uuid_of_this_moment() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = uuid7()
    after_ms = time.time_ns() // 1_000_000

    assert (made.version, made.variant) == (7, RFC_4122)
    assert before_ms <= made.int >> 80 <= after_ms


def test_fresh_ids_do_not_meet() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_without_a_key_each_submission_is_another_job() -> None:
    spec = JobSpec(prompt="a")

    assert job_id_for(spec) != job_id_for(spec)


def test_with_a_key_the_job_is_the_same_whatever_else_it_says() -> None:
    one, other = (JobSpec(prompt=prompt, tenant="t", idempotency_key="k") for prompt in ("a", "b"))

    assert job_id_for(one) == job_id_for(other)
    assert str(job_id_for(one)) == "a8f10e28-7ee3-535c-bbee-b00cc5f006ae"


def test_tenants_do_not_share_keys() -> None:
    ids = {
        job_id_for(JobSpec(prompt="a", tenant=tenant, idempotency_key=key))
        for tenant, key in [("t", "k"), ("u", "k"), ("t", "l"), ("tk", "k"), ("t", "k\nk")]
    }

    assert len(ids) == 5


def test_the_payload_digest_tells_payloads_apart_and_leaves_the_key_out() -> None:
    digests = [
        payload_sha256(JobSpec(prompt=prompt, idempotency_key=key), "tiny")
        for prompt, key in [("a", "k"), ("a", "l"), ("a", None), ("b", "k")]
    ]

    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert re.fullmatch("4:[0-9a-f]{64}", digests[0])


def test_the_same_payload_for_another_model_is_another_one() -> None:
    assert payload_sha256(JobSpec(prompt="a"), "tiny") != payload_sha256(JobSpec(prompt="a"), "large")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"metadata": {"a": 1, "b": {"c": 2, "d": [{"e": 3, "f": 4}]}}},
         {"metadata": {"b": {"d": [{"f": 4, "e": 3}], "c": 2}, "a": 1}}),
        ({"logit_bias": {7: 1.0, 10: -1}}, {"logit_bias": {10: -1.0, 7: 1}}),
        ({"structured_outputs": {"json": {"type": "object", "properties": {"a": {}, "b": {}}}}},
         {"structured_outputs": {"json": {"properties": {"b": {}, "a": {}}, "type": "object"}}}),
        ({"temperature": 1, "top_p": 0.5}, {"top_p": 0.5, "temperature": 1.0}),
    ],
)  # fmt: skip
def test_the_order_of_a_dict_makes_no_other_payload(one: dict[str, Any], other: dict[str, Any]) -> None:
    specs = [JobSpec.model_validate({"prompt": "a", **fields}) for fields in (one, other)]

    assert payload_sha256(specs[0], "tiny") == payload_sha256(specs[1], "tiny")
    assert payload_sha256(specs[0], "tiny") != payload_sha256(JobSpec(prompt="a"), "tiny")

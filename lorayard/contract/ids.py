"""How jobs, clients and payloads are named; an id never carries an order."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

from pydantic_core import to_json

from lorayard.contract.job import JobSpec
from lorayard.contract.request import NEUTRAL

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
JOB_NAMESPACE = UUID("5f6f1a52-6b0c-4d0e-9d0a-6c6f72617964")

_VERSION_7 = 0x7 << 76 | 0x2 << 62
_FREE_BITS = (1 << 128) - 1 & ~(0xF << 76 | 0x3 << 62)
"""All but those of version and variant."""


def uuid7() -> UUID:
    """Make a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits."""
    drawn = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000) << 80 | drawn
    return UUID(int=value & _FREE_BITS | _VERSION_7)


def job_id_for(spec: JobSpec) -> UUID:
    """Name a job: derived from tenant and idempotency key if there is one, else fresh."""
    if spec.idempotency_key is None:
        return uuid7()
    return uuid5(JOB_NAMESPACE, f"{spec.tenant}\n{spec.idempotency_key}")


def payload_sha256(spec: JobSpec, model: str) -> str:
    """Digest what a job asks for and of which model, so that a re-used key is told from a repeated submit.

    `model` is the model's name, not its pool's id, which changes with how the same model is run.
    The digest bears the number of its rule. Rule 4 takes the JSON of what the producer set, keys sorted, so
    that neither a new field nor the order of a dict makes another payload. A value that is the field's
    default counts as left out, since both ask for the same, and clients of version 0.1 spell every default
    out; a default that changes needs a new rule. A field left to the model is another payload than one set.
    """
    asked = {"job": _set_fields(spec), "model": model}
    return f"4:{_sha256(_canonical(asked).encode())}"


def is_same_payload(recorded: str, offered: str, spec: JobSpec | None, model: str) -> bool:
    """Tell whether a digest kept with a key is of this job, under whichever rule it was made.

    `offered` is the digest that came with the job; `spec` is None if not all of the job could be read. What
    was made under another rule, which then cannot be applied to this job, is of no other job's.
    """
    if _rule(recorded) == _rule(offered):
        return recorded == offered
    if spec is None:
        return False
    rules: dict[str, Callable[[JobSpec], str | None]] = {
        "1": _payload_sha256_by_rule_1,
        "2": _payload_sha256_by_rule_2,
        "3": _payload_sha256_by_rule_3,
        "4": lambda spec: payload_sha256(spec, model),
    }
    under_its_rule = rules.get(_rule(recorded))
    return under_its_rule is not None and recorded == under_its_rule(spec)


def _set_fields(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude={"idempotency_key"}, exclude_defaults=True)


def _payload_sha256_by_rule_3(spec: JobSpec) -> str:
    """Digest as before the model's name counted."""
    return f"3:{_sha256(_canonical(_set_fields(spec)).encode())}"


def _payload_sha256_by_rule_2(spec: JobSpec) -> str:
    """Digest as before models had defaults of their own: their neutral values were those of the fields."""
    fields = {name: value for name, value in _set_fields(spec).items() if NEUTRAL.get(name) != value}
    return f"2:{_sha256(_canonical(fields).encode())}"


_RULE_1_FIELDS = (
    "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "logit_bias", "bad_words", "prompt",
    "messages", "adapter", "adapter_scale", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop",
    "stream", "structured_outputs", "priority", "deadline_s", "tenant", "callback_url", "metadata",
)  # fmt: skip


def _payload_sha256_by_rule_1(spec: JobSpec) -> str | None:
    """Digest every field that jobs had under rule 1, defaults included; None if a later one is set."""
    if not spec.model_dump(exclude_defaults=True).keys() <= {*_RULE_1_FIELDS, "idempotency_key"}:
        return None
    fields = spec.model_dump()
    fields |= {name: value for name, value in NEUTRAL.items() if fields[name] is None}
    return _sha256(to_json({name: fields[name] for name in _RULE_1_FIELDS}))


def _rule(digest: str) -> str:
    number, separator, _ = digest.partition(":")
    return number if separator else "1"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""What is judged at the door."""

from __future__ import annotations

from uuid import uuid4

import pytest

from lorayard.contract.ids import payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.pool import PoolInfo
from lorayard.contract.request import Message
from scheduler.admission import estimate_tokens, judge
from scheduler.catalogue import Catalogue

LIMITS = PoolInfo(pool="p", model_name="tiny", max_model_len=100, max_prompt_bytes=1600)


def envelope(spec: JobSpec) -> JobEnvelope:
    return JobEnvelope(
        job_id=uuid4(), submission_id=uuid4(), payload_sha256=payload_sha256(spec, "tiny"), spec=spec
    )


def test_a_prompt_is_measured_in_bytes_and_messages_together() -> None:
    assert JobSpec(prompt="äö").prompt_bytes == 4
    messages = (Message(role="system", content="ab"), Message(role="user", content="c"))
    assert JobSpec(messages=messages).prompt_bytes == 3


@pytest.mark.parametrize(("num_bytes", "tokens"), [(0, 1), (3, 1), (4, 2), (10_000, 99)])
def test_estimates_are_positive_and_never_exclude_a_job(num_bytes: int, tokens: int) -> None:
    assert estimate_tokens(num_bytes, 100) == tokens


def test_the_longest_prompt_that_could_fit_is_let_in_and_one_byte_more_is_not() -> None:
    def code(size: int) -> str | None:
        spec = JobSpec(prompt="x" * size)
        job = judge(envelope(spec), 0.0, catalogue=Catalogue("p"), limits=LIMITS, tenants={"default"})
        return job.rejection.code if job.rejection else None

    assert code(1600) is None
    assert code(1601) == "prompt_too_long"

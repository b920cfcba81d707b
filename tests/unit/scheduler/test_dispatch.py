"""How a round of leased jobs becomes messages."""

from __future__ import annotations

from uuid import uuid4

from db.records import LeasedJob
from lorayard.contract.sampling import SamplingOptions
from lorayard.contract.structured_outputs import StructuredOutputs
from scheduler.dispatch import MAX_MESSAGE_BYTES, _parts


def leased(num_bytes: int) -> LeasedJob:
    return LeasedJob(
        job_id=uuid4(),
        attempt=1,
        strikes=0,
        tenant="default",
        adapter=None,
        revision=None,
        prompt="x" * num_bytes,
        messages=None,
        max_tokens=1,
        adapter_scale=1.0,
        stream=True,
        structured_outputs=StructuredOutputs(choice=("a", "b")),
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        sampling=SamplingOptions(min_p=0.25),
        seed=None,
        stop=(),
        queue_ms=0.0,
        first_token_within_s=None,
        reply_to=None,
        has_callback=False,
    )


def test_small_jobs_go_out_in_one_message_and_large_ones_in_several() -> None:
    small = [leased(100) for _ in range(50)]
    assert list(_parts(small)) == [small]

    third = MAX_MESSAGE_BYTES // 3
    large = [leased(third) for _ in range(7)]
    assert list(_parts(large)) == [large[:3], large[3:6], large[6:]]


def test_a_job_above_the_limit_goes_out_alone_and_nothing_makes_no_message() -> None:
    huge = leased(MAX_MESSAGE_BYTES + 1)
    other = leased(1)

    assert list(_parts([other, huge, other])) == [[other], [huge], [other]]
    assert list(_parts([])) == []

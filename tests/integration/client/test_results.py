"""What a producer hears of its jobs while everything works."""

from __future__ import annotations

from uuid import uuid4

import pytest

from lorayard import Client, JobHandle, JobResult, JobState, as_completed
from lorayard.contract.errors import IdempotencyConflict, JobFailed, ResultTimeout, UnknownJob
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.result import JobError
from tests.integration.client.tiny_leader import TinyLeader, never_end
from tests.polling import eventually

WAIT_S = 10.0


def test_a_result_carries_the_output(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        result = client.submit("hello", adapter="upper").result(WAIT_S)

    assert (result.state, result.output) == (JobState.SUCCEEDED, "HELLO")


def test_a_job_that_fails_raises_with_its_reason(client: Client, pool_url: str) -> None:
    def fail(envelope: JobEnvelope) -> JobResult:
        error = JobError(code="adapter_rank", message="rank 99 is over the limit")
        return JobResult(job_id=envelope.job_id, state=JobState.FAILED, error=error)

    with TinyLeader(pool_url, fail):
        handle = client.submit("hello")
        with pytest.raises(JobFailed, match="ended failed: adapter_rank: rank 99") as raised:
            handle.result(WAIT_S)

    assert raised.value.result.state is JobState.FAILED
    assert handle.result(0, raise_on_failure=False) == raised.value.result


def test_a_job_that_does_not_end_in_time_raises_and_goes_on(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello")
        with pytest.raises(ResultTimeout, match=f"job {handle.id} has not ended within 0.1 s"):
            handle.result(0.1)
        assert not handle.done()

        eventually(lambda: handle.id in leader.envelopes)
        leader.end(handle.id)

        assert handle.result(WAIT_S).output == "ended"
        assert handle.done()


def test_handles_come_in_the_order_in_which_jobs_end(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handles = client.submit_many({"prompt": f"job {number}"} for number in range(5))
        eventually(lambda: len(leader.envelopes) == 5)
        ends = [handles[index] for index in (3, 0, 4, 1, 2)]

        completed = as_completed(handles, timeout=WAIT_S)
        seen: list[JobHandle] = []
        for handle in ends:
            leader.end(handle.id)
            seen.append(next(completed))

        assert seen == ends
        assert list(completed) == []


def test_as_completed_names_how_many_are_left_when_time_is_over(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end), pytest.raises(ResultTimeout, match="2 jobs have not ended"):
        list(as_completed([client.submit("a"), client.submit("b")], timeout=0.2))


def test_status_asks_the_scheduler(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello")
        eventually(lambda: handle.id in leader.envelopes)

        assert handle.status().state is JobState.QUEUED
        leader.end(handle.id, JobState.EXPIRED)
        assert eventually(lambda: handle.status().state is JobState.EXPIRED)


def test_status_without_a_scheduler_times_out_with_the_remedy(pool_url: str) -> None:
    with Client(pool_url, timeout_s=1.5) as client:
        handle = client.submit("hello")
        with pytest.raises(ResultTimeout, match=r"got no answer within 1.5 s.*check that a scheduler"):
            handle.status()


def test_cancelling_a_queued_job_ends_it(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello")
        eventually(lambda: handle.id in leader.envelopes)

        assert handle.cancel() is JobState.CANCELLED
        assert handle.result(WAIT_S, raise_on_failure=False).state is JobState.CANCELLED


def test_cancelling_an_ended_job_answers_its_final_state(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        handle = client.submit("hello")
        handle.result(WAIT_S)

        assert handle.cancel() is JobState.SUCCEEDED


def test_a_job_that_nobody_knows_is_an_error_that_names_it(client: Client, pool_url: str) -> None:
    job_id = uuid4()

    with TinyLeader(pool_url), pytest.raises(UnknownJob, match=f"no ledger knows job {job_id}"):
        client.job(job_id).result(WAIT_S)


def test_an_output_too_large_for_a_reply_is_looked_up(client: Client, pool_url: str) -> None:
    def long_answer(envelope: JobEnvelope) -> JobResult:
        return JobResult(job_id=envelope.job_id, state=JobState.SUCCEEDED, output="x" * 20_000)

    with TinyLeader(pool_url, long_answer) as leader:
        result = client.submit("hello").result(WAIT_S)

    assert result.output == "x" * 20_000
    assert leader.lookups == [result.job_id]


def test_the_ledger_receipt_waits_for_the_admission(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello", confirm="ledger")

        assert handle.id in leader.envelopes
        assert leader.envelopes[handle.id].confirm_ledger


def test_the_ledger_receipt_times_out_without_a_scheduler(pool_url: str) -> None:
    with (
        Client(pool_url, confirm_timeout_s=0.5) as client,
        pytest.raises(ResultTimeout, match=r"is in Redis, but the ledger has not confirmed it within 0.5 s"),
    ):
        client.submit("hello", confirm="ledger")


def test_the_same_key_and_payload_is_one_job(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url) as leader, Client(pool_url) as other:
        handles = [who.submit("hello", idempotency_key="k1") for who in (client, other, client)]
        results = [handle.result(WAIT_S) for handle in handles]

    assert len({handle.id for handle in handles}) == len(leader.order) == 1
    assert {result.output for result in results} == {"HELLO"}


def test_the_same_key_with_another_payload_is_a_conflict(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        first = client.submit("hello", idempotency_key="k1")
        second = client.submit("other", idempotency_key="k1")

        with pytest.raises(IdempotencyConflict, match=f"job {second.id}: the key was used"):
            second.result(WAIT_S)
        assert first.result(WAIT_S).output == "HELLO"


def test_a_handle_in_conflict_cancels_and_tells_nothing_of_the_first_job(
    client: Client, pool_url: str
) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        first = client.submit("hello", idempotency_key="k1", stream=True)
        # Nothing is heard before one of these asks.
        for ask in (JobHandle.cancel, JobHandle.status, lambda handle: next(handle.stream(WAIT_S))):
            with Client(pool_url) as other:
                second = other.submit("other", idempotency_key="k1", stream=True)
                with pytest.raises(IdempotencyConflict, match=f"job {second.id}: the key was used"):
                    ask(second)

        assert leader.results == {}
        assert first.status().state is JobState.QUEUED


def test_a_repeat_cancels_the_job_that_it_repeats(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end), Client(pool_url) as other:
        first = client.submit("hello", idempotency_key="k1")
        other.submit("hello", idempotency_key="k1").cancel()

        assert first.result(WAIT_S, raise_on_failure=False).state is JobState.CANCELLED


def test_a_cancel_under_a_key_that_nobody_judges_sends_nothing(pool_url: str) -> None:
    with Client(pool_url, timeout_s=0.2) as client:
        handle = client.submit("hello", idempotency_key="k1")
        with pytest.raises(ResultTimeout, match=f"job {handle.id} may be another submission's"):
            handle.cancel()

    with TinyLeader(pool_url, never_end) as leader, Client(pool_url) as client:
        assert client.job(handle.id).status().state is JobState.QUEUED
        assert leader.results == {}


def test_the_ledger_receipt_of_a_conflict_is_the_conflict(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        client.submit("hello", idempotency_key="k1").result(WAIT_S)

        with Client(pool_url) as other, pytest.raises(IdempotencyConflict):
            other.submit("other", idempotency_key="k1", confirm="ledger")

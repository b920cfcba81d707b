"""What a producer sees of a job's text while it is written, and where the stream fails."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from lorayard import Client, JobResult, JobState, StreamEvent
from lorayard.contract.errors import JobFailed, ResultTimeout
from lorayard.contract.keys import tokens_key
from lorayard.contract.messages import JobEnvelope, TokenEntry
from lorayard.contract.result import JobError
from lorayard.server.replies import append_tokens, send
from tests.integration.client.tiny_leader import TinyLeader, connect, never_end
from tests.polling import eventually

WAIT_S = 10.0


def write(url: str, job_id: UUID, *entries: TokenEntry) -> None:
    """Write to a job's stream as its worker would."""
    with connect(url) as redis:
        pipeline = redis.pipeline(transaction=False)
        append_tokens(pipeline, job_id, entries)
        send(pipeline)


def written(url: str, job_id: UUID) -> list[str]:
    """Read the text of a job's stream, entry by entry."""
    with connect(url) as redis:
        entries: Any = redis.xrange(tokens_key(job_id))
    return [TokenEntry.from_entry(fields).text for _, fields in entries]


def piece(attempt: int, char_offset: int, text: str) -> TokenEntry:
    return TokenEntry(attempt=attempt, char_offset=char_offset, text=text)


ENDED = TokenEntry(attempt=1, ended=True)


def test_text_comes_while_the_job_runs_and_ends_with_the_result(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello", stream=True)
        eventually(lambda: handle.id in leader.envelopes)
        events = handle.stream(WAIT_S)

        write(pool_url, handle.id, piece(1, 0, "once "), piece(1, 5, "upon"))
        assert [next(events), next(events)] == [StreamEvent("once ", 1), StreamEvent("upon", 1)]
        write(pool_url, handle.id, piece(1, 5, "upon"))  # told before
        write(pool_url, handle.id, piece(1, 7, "on a"))  # repeated in part
        assert next(events) == StreamEvent(" a", 1)
        write(pool_url, handle.id, ENDED)
        leader.end(handle.id, output="once upon a time")

        assert [event.text for event in events] == [" time"]
    assert leader.envelopes[handle.id].spec.stream


def test_a_higher_attempt_starts_over_and_a_lower_one_is_not_heard(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello", stream=True)
        eventually(lambda: handle.id in leader.envelopes)
        events = handle.stream(WAIT_S)

        write(pool_url, handle.id, piece(1, 0, "once"), piece(2, 0, "twice"), piece(1, 4, " late"))
        assert [next(events), next(events)] == [StreamEvent("once", 1), StreamEvent("twice", 2, True)]
        write(pool_url, handle.id, piece(2, 5, " told"))
        assert next(events) == StreamEvent(" told", 2)
        leader.end(handle.id, output="twice told")

        assert list(events) == []
        assert written(pool_url, handle.id) == ["once", "twice", " told"], "the fenced attempt's is refused"


def test_a_gap_is_closed_by_the_result(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello", stream=True)
        eventually(lambda: handle.id in leader.envelopes)
        events = handle.stream(WAIT_S)
        write(pool_url, handle.id, piece(1, 0, "once"), piece(1, 9, " time"))
        assert next(events).text == "once"

        leader.end(handle.id, output="once upon a time")

        assert list(events) == [StreamEvent(" upon a time", 0)]


def test_a_job_without_a_stream_comes_in_one_piece(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        handle = client.submit("hello")

        assert [event.text for event in handle.stream(WAIT_S)] == ["HELLO"]
        assert [event.text for event in handle.stream(0)] == ["HELLO"]


def test_a_stream_that_says_something_else_than_the_result_is_void(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello", stream=True)
        eventually(lambda: handle.id in leader.envelopes)
        events = handle.stream(WAIT_S)
        write(pool_url, handle.id, piece(1, 0, "once"))
        assert next(events).text == "once"

        with connect(pool_url) as redis:
            redis.unlink(tokens_key(handle.id))  # it expired before the second attempt was read
        leader.end(handle.id, output="twice")

        assert list(events) == [StreamEvent("twice", 0, is_restart=True)]


def test_a_failed_job_raises_as_its_result_does(client: Client, pool_url: str) -> None:
    def fail(envelope: JobEnvelope) -> JobResult:
        error = JobError(code="adapter_rank", message="rank 99 is over the limit")
        return JobResult(job_id=envelope.job_id, state=JobState.FAILED, error=error)

    with TinyLeader(pool_url, fail), pytest.raises(JobFailed, match="adapter_rank"):
        list(client.submit("hello", stream=True).stream(WAIT_S))


def test_a_stream_that_takes_too_long_raises(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end), pytest.raises(ResultTimeout, match="has not ended"):
        list(client.submit("hello", stream=True).stream(0.3))

"""A real worker writes the text of jobs that stream while they run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from uuid import UUID

from db.repositories.leases import LeaseRepository
from lorayard.client.stream import StreamEvent, TokenStream, read_stream
from lorayard.contract.job import JobSpec
from lorayard.contract.keys import tokens_key
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from lorayard.contract.structured_outputs import StructuredOutputs
from lorayard.transport.redis_link import RedisLink
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.polling import eventually


def read(
    leader: ScriptedLeader, tokens: TokenStream, is_settled: Callable[[], bool]
) -> Iterator[StreamEvent]:
    return read_stream(tokens, RedisLink(leader.redis_url, 5.0), is_settled, None)


def ended(leader: ScriptedLeader, job_id: UUID) -> bool:
    return leader.result(job_id).state.is_terminal


def test_what_was_streamed_is_the_output(leader: ScriptedLeader, incarnation: str) -> None:
    asked = questions(6)
    streamed = [question.spec.model_copy(update={"stream": True}) for question in asked[1:]]
    quiet, *loud = leader.dispatch(incarnation, [asked[0].spec, *streamed])

    for job_id, question in zip(loud, asked[1:], strict=True):
        reading = TokenStream(job_id)
        events = list(read(leader, reading, partial(ended, leader, job_id)))
        events += reading.rest(leader.result(job_id))

        assert "".join(event.text for event in events) == question.answer
        assert {(event.attempt, event.is_restart) for event in events} == {(1, False)}
        key = tokens_key(job_id)
        eventually(lambda key=key: leader.redis.xlen(key) >= 2, what="text and its end")  # type: ignore[misc]
        assert 0 < leader.redis.ttl(key) <= 600
    leader.ended([quiet])
    assert not leader.redis.exists(tokens_key(quiet))


def test_a_second_attempt_starts_the_stream_over(leader: ScriptedLeader, incarnation: str) -> None:
    (job_id,) = leader.dispatch(incarnation, [ENDLESS.model_copy(update={"stream": True})])
    reading = TokenStream(job_id)
    events = read(leader, reading, lambda: ended(leader, job_id))
    first = next(events)

    leader.database.run(lambda c: LeaseRepository(c).release(incarnation, [(job_id, 1)]))
    (again,) = eventually(lambda: lease(leader, incarnation, job_id), what="the second lease")
    leader.send(incarnation, [again], max_tokens=30)
    rest: list[StreamEvent] = list(events)

    stale = list(takewhile(lambda event: event.attempt == 1, rest))
    (result,) = leader.ended([job_id])
    fresh = rest[len(stale) :] + list(reading.rest(result))
    assert first.attempt == 1
    assert (result.attempt, result.completion_tokens) == (2, 30)
    assert [event.is_restart for event in fresh] == [True] + [False] * (len(fresh) - 1)
    assert "".join(event.text for event in fresh) == result.output


def test_a_job_whose_answer_has_a_form_streams_it(leader: ScriptedLeader, incarnation: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    good = StructuredOutputs(json_schema=schema | {"additionalProperties": False})
    bad = StructuredOutputs(regex="a(")
    specs = [
        JobSpec(prompt="hello>", max_tokens=60, stream=True, structured_outputs=form) for form in (good, bad)
    ]

    kept, refused = leader.ended(leader.dispatch(incarnation, specs))

    assert json.loads(kept.output or "").keys() == {"ok"}
    assert refused.state is JobState.REJECTED
    assert refused.error is not None
    assert "the regex is refused" in refused.error.message
    reading = TokenStream(kept.job_id)
    events = [*read(leader, reading, lambda: True), *reading.rest(kept)]
    assert "".join(event.text for event in events) == kept.output


def lease(leader: ScriptedLeader, incarnation: str, job_id: UUID) -> list[BatchJob]:
    return leader.lease(incarnation, [job_id])

"""Messages are read as they were written, and nothing else is taken for one."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from lorayard.contract.ids import payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import (
    AdapterFailure,
    BatchJob,
    CatalogueEntry,
    Command,
    ControlMessage,
    EndedJob,
    HeldJob,
    JobEnvelope,
    JobReply,
    MicroBatch,
    Residency,
    WireMessage,
    WorkerEvent,
)
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

ID = UUID(int=7)
SPEC = JobSpec(prompt="é", adapter="sql", stop=("end",), metadata={"n": [1, None]})
ERROR = JobError(code="x", message="y")
BATCH_JOB = BatchJob(
    job_id=ID, attempt=1, tenant="t", adapter=None, revision=None, request={"prompt": "p"}, queue_ms=1,
    reply_to=None, has_callback=False,
)  # fmt: skip

MESSAGES: list[WireMessage] = [
    JobEnvelope(
        job_id=ID, submission_id=ID, payload_sha256=payload_sha256(SPEC, "tiny"), spec=SPEC, reply_to="c"
    ),
    JobReply(job_id=ID, state=None, request_id=ID),
    JobReply(
        job_id=ID,
        state=JobState.FAILED,
        result=JobResult(job_id=ID, state=JobState.FAILED, error=ERROR),
        submission_id=ID,
        conflict=ERROR,
    ),
    ControlMessage(kind="cancel", job_id=ID, reply_to="c", request_id=ID),
    BATCH_JOB,
    MicroBatch(batch_id=ID, pool="p", incarnation="i", term=1, jobs=(BATCH_JOB,)),
    WorkerEvent(
        incarnation="i",
        free_seqs=1,
        free_kv_blocks=2,
        residency=(Residency(revision="r", tier="device"),),
        ended=(EndedJob(job_id=ID, attempt=1, state=JobState.DEAD),),
        held=(HeldJob(job_id=ID, attempt=1, running=True),),
        failures=(AdapterFailure(revision="r", code="c", message="m", retryable=True),),
    ),
    Command(kind="drop", term=1, job_ids=(ID,), revisions=("r",)),
    CatalogueEntry(name="sql", revision="r", rank=4, state="active"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_read_as_it_was_written(message: WireMessage) -> None:
    assert type(message).from_entry(message.to_entry()) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_of_another_version_is_refused(message: WireMessage) -> None:
    body = {**json.loads(message.model_dump_json()), "v": 2}

    with pytest.raises(ValueError, match="v\n"):
        type(message).from_entry({b"body": json.dumps(body).encode()})


def test_a_message_with_a_field_of_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        ControlMessage.from_entry({b"body": b'{"kind":"lookup","job_id":"%s","new":1}' % str(ID).encode()})


def test_an_entry_without_a_body_is_told_as_such() -> None:
    with pytest.raises(ValueError, match=r"has the fields \[b'payload'\], not 'body'"):
        JobEnvelope.from_entry({b"payload": b"x"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"kind":"lookup"}'])
def test_a_body_that_is_no_message_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="ControlMessage"):
        ControlMessage.from_entry({b"body": body})

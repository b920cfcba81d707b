"""Reads jobs that another release may have written: one that says more than is known here is refused.

So is one with a value that is out of bounds here. Its producer hears of it, if it can be told who that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lorayard.contract.job import JobSpec, Name
from lorayard.contract.messages import (
    BODY_FIELD,
    MAX_JOB_BYTES,
    WRITER_FIELD,
    BatchJob,
    JobEnvelope,
    JobReply,
)
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState
from lorayard.contract.version import RELEASE
from lorayard.contract.wording import cut, shortened

UNREADABLE_PROMPT = "(a request that this release cannot read)"
_MAX_NAMES = 10


class ReceivedJob(NamedTuple):
    """A job from the intake; with a `refusal` the envelope holds only what could be read of it."""

    envelope: JobEnvelope
    refusal: JobError | None


class UnreadableRequest(ValueError):
    """A request asks for what this release does not know; `code` is stable, the message names both ends."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of."""
        return type(self), (self.code, *self.args), self.__dict__


def receive_job(fields: Mapping[bytes, bytes]) -> ReceivedJob:
    """Read an intake entry; raises ValueError on what is not a job at all, or too large to be looked at."""
    if (size := len(fields.get(BODY_FIELD, b""))) > MAX_JOB_BYTES:
        raise ValueError(f"the job has {size} bytes, at most {MAX_JOB_BYTES}")
    try:
        return ReceivedJob(JobEnvelope.from_entry(dict(fields)), None)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if not all(map(_is_of_the_job_alone, problems)):
            raise
        code, message = _refusal(error, problems, _writer(fields))
        envelope = _without(problems, json.loads(fields[BODY_FIELD]))
        return ReceivedJob(envelope, JobError(code=code, message=message))


def unreadable_reply(fields: Mapping[bytes, bytes], reason: str) -> tuple[str, JobReply] | None:
    """Render for its client that an intake entry was put aside; None if even its client cannot be read."""
    try:
        body = fields[BODY_FIELD]
        named = _Addressed.model_validate_json(body if len(body) <= MAX_JOB_BYTES else b"")
    except (LookupError, ValidationError):
        return None
    error = JobError(
        code="unreadable_job",
        message=f"the scheduler cannot take the job ({reason}); {_both(_writer(fields))}",
    )
    result = JobResult(job_id=named.job_id, state=JobState.REJECTED, error=error)
    return named.reply_to, JobReply(
        job_id=named.job_id, state=result.state, result=result, submission_id=named.submission_id
    )


class _Addressed(BaseModel):
    """What an envelope must at least have to be answered."""

    job_id: UUID
    submission_id: UUID
    reply_to: Name


def read_request(job: BatchJob) -> GenerationRequest:
    """Read what a worker is asked to run, defaults filled in; raises UnreadableRequest."""
    if job.model_extra:
        raise UnreadableRequest(*_unsupported([(name,) for name in job.model_extra], job.writer))
    try:
        return GenerationRequest.model_validate(job.request)
    except ValidationError as error:
        if unknown := _unknown_fields(error):
            raise UnreadableRequest(*_unsupported(unknown, job.writer)) from error
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the request"
        message = f"{cut(field)}: {first['msg']}; {_both(job.writer)}: upgrade the workers first"
        raise UnreadableRequest("unsupported_value", message) from error


def _is_of_the_job_alone(problem: ErrorDetails) -> bool:
    """Whether a problem leaves readable which job it is of, and whom it belongs to."""
    if problem["type"] == "extra_forbidden":
        return True
    path = problem["loc"]
    is_of_spec = path[:1] == ("spec",) and (len(path) > 1 or problem["type"] == "value_error")
    return is_of_spec and path[1:2] != ("tenant",)


def _refusal(error: ValidationError, problems: Sequence[ErrorDetails], writer: str | None) -> tuple[str, str]:
    if unknown := _unknown_fields(error):
        return _unsupported(unknown, writer)
    first = problems[0]
    field = cut(".".join(str(part) for part in first["loc"] if part != "spec") or "the job")
    message = (
        f"{field}: {first['msg'].removeprefix('Value error, ')}; {_both(writer)}: upgrade the scheduler and "
        "its workers before the producers, or give another value"
    )
    return "unsupported_value", message


def _writer(fields: Mapping[bytes, bytes]) -> str:
    return fields.get(WRITER_FIELD, b"").decode("utf-8", "replace")


def _unknown_fields(error: ValidationError) -> list[tuple[int | str, ...]]:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]


def _unsupported(fields: Sequence[tuple[int | str, ...]], writer: str | None) -> tuple[str, str]:
    paths = [".".join(str(part) for part in field if part != "spec") for field in fields[:_MAX_NAMES]]
    more = f" and {len(fields) - _MAX_NAMES} more" if len(fields) > _MAX_NAMES else ""
    message = (
        f"the job has fields that are not known here: {', '.join(map(shortened, paths))}{more}; "
        f"{_both(writer)}: upgrade the scheduler and its workers before the producers, or leave these fields "
        "out"
    )
    return "unsupported_field", message


def _both(writer: str | None) -> str:
    named = (
        f"lorayard {cut(writer)}" if writer and writer.isprintable() else "a lorayard that gave no release"
    )
    return f"it was written by {named}, this is lorayard {RELEASE}"


def _without(problems: Sequence[ErrorDetails], body: dict[str, Any]) -> JobEnvelope:
    """Read what is known of a job; if that makes no request, keep how the job is routed, or whose it is."""
    with suppress(ValidationError, LookupError, TypeError, AttributeError):
        return _envelope(_reduced(problems, body))
    known = {name: value for name, value in body.items() if name in JobEnvelope.model_fields}
    if isinstance(spec := body.get("spec"), dict):
        routing = JobSpec.model_fields.keys() - GenerationRequest.model_fields.keys()
        bad = {problem["loc"][1] for problem in problems if len(problem["loc"]) > 1}
        for kept in (routing - bad, {"tenant"}):
            known["spec"] = {name: value for name, value in spec.items() if name in kept}
            known["spec"]["prompt"] = UNREADABLE_PROMPT
            with suppress(ValidationError):
                return _envelope(known)
    return _envelope(known)


def _reduced(problems: Sequence[ErrorDetails], body: dict[str, Any]) -> dict[str, Any]:
    """Take unknown fields out of a job, wherever they are, and known ones whose value is out of bounds."""
    reduced = deepcopy(body)
    for problem in problems:
        path = problem["loc"] if problem["type"] == "extra_forbidden" else problem["loc"][:2]
        holder: Any = reduced
        for part in path[:-1]:
            holder = holder[part]
        holder.pop(path[-1], None)
    return reduced


def _envelope(body: dict[str, Any]) -> JobEnvelope:
    return JobEnvelope.model_validate_json(json.dumps(body))

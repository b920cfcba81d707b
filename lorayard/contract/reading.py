"""Reads jobs that another release may have written: one that says more than is known here is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from lorayard.contract.job import JobSpec
from lorayard.contract.messages import BODY_FIELD, WRITER_FIELD, BatchJob, JobEnvelope
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobError
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


def receive_job(fields: Mapping[bytes, bytes]) -> ReceivedJob:
    """Read an intake entry; raises ValueError on what is not a job at all."""
    try:
        return ReceivedJob(JobEnvelope.from_entry(dict(fields)), None)
    except ValidationError as error:
        unknown = _unknown_fields(error)
        if not unknown:
            raise
        writer = fields.get(WRITER_FIELD, b"").decode("utf-8", "replace")
        code, message = _unsupported(unknown, writer)
        envelope = _without(unknown, json.loads(fields[BODY_FIELD]))
        return ReceivedJob(envelope, JobError(code=code, message=message))


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


def _without(unknown: Sequence[tuple[int | str, ...]], body: dict[str, Any]) -> JobEnvelope:
    """Read what is known of a job; if that makes no request, keep how the job is routed."""
    try:
        for path in unknown:
            holder: Any = body
            for part in path[:-1]:
                holder = holder[part]
            del holder[path[-1]]
        return JobEnvelope.model_validate_json(json.dumps(body))
    except (ValidationError, LookupError, TypeError):
        known = {name: value for name, value in body.items() if name in JobEnvelope.model_fields}
        if isinstance(spec := body.get("spec"), dict):
            routing = JobSpec.model_fields.keys() - GenerationRequest.model_fields.keys()
            known["spec"] = {name: value for name, value in spec.items() if name in routing}
            known["spec"]["prompt"] = UNREADABLE_PROMPT
        return JobEnvelope.model_validate_json(json.dumps(known))

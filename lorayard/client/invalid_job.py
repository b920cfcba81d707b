"""What was wrong with a job, in words: the field, the value (shortened) and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from lorayard.contract.errors import InvalidJob
from lorayard.contract.job import JobSpec
from lorayard.contract.pool import PoolInfo
from lorayard.contract.wording import cut, shortened, told

_MAX_PROBLEMS = 5


def validated(fields: JobSpec | Mapping[str, Any], position: int | None = None) -> JobSpec:
    """Make a JobSpec of a caller's fields; raises InvalidJob, naming its position in a list of jobs."""
    # A JobSpec once more: what its `model_copy(update=...)` makes was never checked.
    given = fields.model_dump(exclude_unset=True, warnings=False) if isinstance(fields, JobSpec) else fields
    try:
        checked = JobSpec.model_validate(given)
    except ValidationError as error:
        raise invalid_job(error, position) from error
    return fields if isinstance(fields, JobSpec) and fields == checked else checked


def given_job(prompt: str | None, fields: Mapping[str, Any]) -> JobSpec:
    """Make the one job of a `submit` call, in which None stands for what was left out; raises InvalidJob."""
    given = {"prompt": prompt, **fields}
    return validated({name: value for name, value in given.items() if value is not None})


def invalid_job(error: ValidationError, position: int | None = None) -> InvalidJob:
    """Translate pydantic's account of a job into one message."""
    where = "the job is invalid" if position is None else f"job {position} of the list is invalid"
    return InvalidJob(f"{where}: {problems_of(error)}")


def problems_of(error: ValidationError) -> str:
    """Word the first few problems: field, value, remedy."""
    problems = error.errors(include_url=False)
    lines = [_problem(dict(problem)) for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    return "; ".join(lines)


def _problem(problem: dict[str, Any]) -> str:
    location, value = problem["loc"], shortened(problem.get("input"))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message if problem["type"] == "value_error" else f"{message}, not {value}: give a dict"
    field = cut(".".join(str(part) for part in location))
    if problem["type"] == "extra_forbidden":
        return f"{field}={value}: there is no such field; {_nearest(str(location[0]))}"
    shown = told(field, problem.get("input"))
    if problem["type"] == "value_error" and location[0] != "idempotency_key":
        return f"{shown}: {message}"
    return f"{shown}: {message}; {_remedy(str(location[0]))}"


def _remedy(name: str) -> str:
    """Read what the field itself says to give instead."""
    field = JobSpec.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    return str(extra["remedy"]) if isinstance(extra, dict) else "correct it"


def _nearest(field: str) -> str:
    near = get_close_matches(field, JobSpec.model_fields, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(JobSpec.model_fields)}"


def invalid_prompt_size(spec: JobSpec, pool: PoolInfo) -> InvalidJob | None:
    """Tell what no tokeniser need be asked about: more bytes than the pool's context can ever hold."""
    size = spec.prompt_bytes
    if size <= pool.max_prompt_bytes:
        return None
    return InvalidJob(
        f"the prompt has {size} bytes, the limit of {pool.model_name} ({pool.max_model_len} tokens) is "
        f"{pool.max_prompt_bytes}: shorten it"
    )

"""What was wrong with a job, in words: the field, the value (shortened) and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from lorayard.contract.errors import InvalidJob
from lorayard.contract.job import JobSpec
from lorayard.contract.pool import PoolInfo
from lorayard.contract.wording import cut, shortened

_MAX_PROBLEMS = 5
_NAME_REMEDY = (
    "use 1 to 200 letters, digits and . _ : / @ + -, beginning with a letter, a digit or an underscore"
)
_REMEDIES = {
    "prompt": "give a non-empty string",
    "messages": "give a list of {'role': 'system' | 'user' | 'assistant', 'content': text}",
    "adapter": f"{_NAME_REMEDY}, or None for the base model",
    "adapter_scale": "give a number from -100 to 100, 1 for the adapter as trained",
    "max_tokens": "give a whole number from 1 to 1000000",
    "temperature": "give a number from 0 (greedy) to 10",
    "top_p": "give a number above 0 and up to 1",
    "top_k": "give a whole number, 0 to keep every token",
    "seed": "give a whole number from 0 to 2**63 - 1, or None",
    "stop": "give a list of at most 16 non-empty strings of at most 1000 characters",
    "stream": "give True or False",
    "structured_outputs": "give one of {'json': {...}}, {'regex': ''}, {'choice': [...]}, {'grammar': ''}",
    "min_p": "give a number from 0 to 1",
    "repetition_penalty": "give a number from 0.01 to 100, 1 for none",
    "presence_penalty": "give a number from -2 to 2, 0 for none",
    "frequency_penalty": "give a number from -2 to 2, 0 for none",
    "min_tokens": "give a whole number from 0 to max_tokens",
    "stop_token_ids": "give a list of at most 64 token ids",
    "include_stop_str_in_output": "give true or false",
    "ignore_eos": "give true or false",
    "skip_special_tokens": "give true or false",
    "logit_bias": "give a dict of at most 1024 token ids to numbers from -100 to 100",
    "bad_words": "give a list of at most 256 non-empty strings of at most 200 characters",
    "priority": "give 'high', 'normal' or 'low'",
    "deadline_s": "give seconds above 0 and up to 2592000 (30 days), or None",
    "tenant": _NAME_REMEDY,
    "callback_url": "give an http(s) URL of at most 2048 characters, e.g. https://example.com/hook",
    "idempotency_key": "give 1 to 500 characters, or None",
    "metadata": "give a dict of JSON values with string keys, nested at most 64 deep",
}


def validated(fields: JobSpec | Mapping[str, Any], position: int | None = None) -> JobSpec:
    """Make a JobSpec of a caller's fields; raises InvalidJob, naming its position in a list of jobs."""
    if isinstance(fields, JobSpec):
        return fields
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        raise invalid_job(error, position) from error


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
    if problem["type"] == "value_error" and location[0] != "idempotency_key":
        return f"{field}={value}: {message}"
    return f"{field}={value}: {message}; {_REMEDIES.get(str(location[0]), 'correct it')}"


def _nearest(field: str) -> str:
    near = get_close_matches(field, _REMEDIES, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(_REMEDIES)}"


def invalid_prompt_size(spec: JobSpec, pool: PoolInfo) -> InvalidJob | None:
    """Tell what no tokeniser need be asked about: more bytes than the pool's context can ever hold."""
    size = len((spec.prompt or "").encode()) + sum(len(m.content.encode()) for m in spec.messages or ())
    if size <= pool.max_prompt_bytes:
        return None
    return InvalidJob(
        f"the prompt has {size} bytes, the limit of {pool.model_name} ({pool.max_model_len} tokens) is "
        f"{pool.max_prompt_bytes}: shorten it"
    )

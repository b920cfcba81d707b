"""What is made of trusted values is what pydantic makes of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from lorayard.contract.messages import BatchJob, WireMessage
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState
from lorayard.contract.trusted import trusted

JOB: dict[str, Any] = {
    "job_id": UUID(int=7), "attempt": 2, "tenant": "t", "adapter": None, "revision": None, "reply_to": "c",
    "request": {"prompt": "a", "max_tokens": 1}, "queue_ms": 1.5, "has_callback": False,
}  # fmt: skip
LONG_JOB = JOB | {"metadata": {"x": 1}, "writer": "1"}
RESULT: dict[str, Any] = {"job_id": UUID(int=7), "state": JobState.FAILED}
WHOLE = RESULT | {"error": JobError(code="c", message="m"), "metadata": {"a": [1]}, "warnings": ("w",)}


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (BatchJob, JOB),
        (BatchJob, JOB | {"metadata": {"x": 1}, "writer": "1"}),
        (JobResult, RESULT),
        (JobResult, WHOLE),
    ],
)
def test_a_model_of_trusted_values_is_the_one_that_pydantic_makes(
    cls: type[BaseModel], values: dict[str, Any]
) -> None:
    made, known = trusted(cls, values), cls.model_construct(**values)

    assert made == known
    assert made.model_fields_set == known.model_fields_set
    assert made.model_extra == known.model_extra
    assert made.model_dump_json() == known.model_dump_json()
    assert made.model_dump_json(exclude_unset=True) == known.model_dump_json(exclude_unset=True)
    assert cls.model_validate_json(made.model_dump_json()) == made


def test_what_can_be_changed_is_shared_by_no_two_models() -> None:
    first, second = trusted(BatchJob, JOB), trusted(BatchJob, JOB)

    first.metadata["a"] = 1

    assert second.metadata == {}


def test_the_version_is_written_with_a_message_of_trusted_values() -> None:
    assert issubclass(BatchJob, WireMessage)
    assert trusted(BatchJob, JOB).model_dump(exclude_unset=True)["v"] == 1

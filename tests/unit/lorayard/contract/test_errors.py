"""Every error comes out of another process as it went in."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any
from uuid import uuid4

import pytest

import db.errors
import lorayard
import lorayard.contract.errors
import lorayard.contract.reading
import lorayard.local.errors
from lorayard.contract.errors import LorayardError, QueueFull, Unavailable
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

ERRORS = sorted(
    {
        kind
        for module in (
            lorayard, lorayard.contract.errors, lorayard.contract.reading, lorayard.local.errors, db.errors
        )
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and "pydantic" not in kind.__module__
    },
    key=lambda kind: kind.__name__,
)  # fmt: skip
RESULT = JobResult(job_id=uuid4(), state=JobState.FAILED, error=JobError(code="c", message="m"))


def made(kind: type[Exception]) -> Exception:
    """Make an error of this kind, whatever it wants to be told."""
    if not inspect.isfunction(kind.__init__):  # an exception's own: anything
        return kind("what was said; its remedy")
    values: dict[str, Any] = {"float": 1.5, "str": "what was said", "JobResult": RESULT}
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return kind(*(values[str(one.annotation)] for one in wanted))


def as_told(error: Exception) -> tuple[Any, ...]:
    return type(error), str(error), error.args, vars(error)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_comes_out_of_another_process_as_it_went_in(kind: type[Exception]) -> None:
    error = made(kind)
    error.add_note("and a note")

    for sent in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert as_told(sent) == as_told(error)
    assert as_told(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))) == as_told(error)


def test_no_kind_of_error_is_left_out() -> None:
    assert len(ERRORS) > 25
    assert set(LorayardError.__subclasses__()) <= set(ERRORS)


@pytest.mark.parametrize("error", [QueueFull("full", 1.5), Unavailable("away")], ids=repr)
def test_of_what_was_accepted_the_ids_are_sent(error: QueueFull | Unavailable) -> None:
    with lorayard.Client("redis://127.0.0.1:1/0") as client:
        handles = [client.job(uuid4()) for _ in range(2)]
        error.accepted = handles

        sent = pickle.loads(pickle.dumps(error))
        again = pickle.loads(pickle.dumps(sent))

        for one in (handles[0], client):
            with pytest.raises(TypeError, match="belongs to its process"):
                pickle.dumps(one)
    assert sent.accepted == again.accepted == tuple(handle.id for handle in handles)
    assert error.accepted == handles

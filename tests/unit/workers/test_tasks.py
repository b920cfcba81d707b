"""Which micro-batches are taken in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.reading import UnreadableRequest
from tests.unit.workers.batch_jobs import batch_job
from workers.tasks import join_micro_batch


class Joined:
    """Takes note of what joins."""

    def __init__(self) -> None:
        self.jobs: list[BatchJob] = []
        self.rejected: list[JobAttempt] = []

    def reject(self, task_id: str, key: JobAttempt, error: UnreadableRequest) -> None:
        assert error.code == "unreadable_job"
        self.rejected.append(key)

    def join(self, task_id: str, jobs: Iterable[BatchJob]) -> int:
        self.jobs += jobs
        return len(self.jobs)


def _join(engine: Joined, body: object) -> dict[str, Any]:
    return join_micro_batch(engine, "task", body, pool="pool", incarnation="me")


def _body(pool: str = "pool", incarnation: str = "me") -> dict[str, object]:
    batch = MicroBatch(batch_id=uuid4(), pool=pool, incarnation=incarnation, term=1, jobs=(batch_job(),))
    return batch.model_dump(mode="json")


def test_a_batch_for_this_incarnation_joins() -> None:
    joined = Joined()

    answer = _join(joined, _body())

    assert answer["joined"] == len(joined.jobs) == 1


@pytest.mark.parametrize("changes", [{"pool": "other"}, {"incarnation": "other"}])
def test_a_batch_for_another_is_left_alone(changes: dict[str, str]) -> None:
    joined = Joined()

    answer = _join(joined, _body(**changes))

    assert answer["not_ours"]
    assert joined.jobs == []


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValidationError):
        _join(Joined(), {"v": 2})


def test_a_job_that_cannot_be_read_does_not_keep_its_neighbours_out() -> None:
    joined = Joined()
    good, of_later = (batch_job().model_dump(mode="json") for _ in range(2))
    of_later["of_later"] = 1

    bad = {"job_id": str(uuid4()), "attempt": 2}

    answer = _join(joined, _body() | {"jobs": [good, {"job_id": "no uuid"}, of_later, None, bad]})

    assert answer["joined"] == 2
    assert [(str(key.job_id), key.attempt) for key in joined.rejected] == [(bad["job_id"], 2)]
    assert [str(job.job_id) for job in joined.jobs] == [good["job_id"], of_later["job_id"]]


@pytest.mark.parametrize("changes", [{"jobs": None}, {"batch_id": "x"}, {"v": 2}])
def test_a_batch_that_is_wrong_itself_is_refused_whole(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _join(Joined(), _body() | changes)


def test_what_a_later_release_adds_to_a_batch_is_passed_over() -> None:
    joined = Joined()

    assert _join(joined, _body() | {"of_later": 1})["joined"] == 1

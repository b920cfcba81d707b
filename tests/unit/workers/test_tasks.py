"""Which micro-batches are taken in."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

import pytest
from pydantic import ValidationError

from lorayard.contract.messages import BatchJob, MicroBatch
from tests.unit.workers.batch_jobs import batch_job
from workers.tasks import MicroBatchDesk


class Joined:
    """Takes note of what joins."""

    def __init__(self) -> None:
        self.jobs: list[BatchJob] = []

    def join(self, task_id: str, jobs: Iterable[BatchJob]) -> int:
        self.jobs += jobs
        return len(self.jobs)


def _body(pool: str = "pool", incarnation: str = "me") -> dict[str, object]:
    batch = MicroBatch(batch_id=uuid4(), pool=pool, incarnation=incarnation, term=1, jobs=(batch_job(),))
    return batch.model_dump(mode="json")


def test_a_batch_for_this_incarnation_joins() -> None:
    joined = Joined()

    answer = MicroBatchDesk("pool", "me", joined).accept("task", _body())

    assert answer["joined"] == len(joined.jobs) == 1


@pytest.mark.parametrize("changes", [{"pool": "other"}, {"incarnation": "other"}])
def test_a_batch_for_another_is_left_alone(changes: dict[str, str]) -> None:
    joined = Joined()

    answer = MicroBatchDesk("pool", "me", joined).accept("task", _body(**changes))

    assert answer["not_ours"]
    assert joined.jobs == []


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValidationError):
        MicroBatchDesk("pool", "me", Joined()).accept("task", {"v": 2})

"""The Celery pool, driven as Celery drives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from kombu.serialization import loads

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.reading import UnreadableRequest
from lorayard.contract.tasks import RUN_MICRO_BATCH
from tests.polling import eventually
from tests.unit.workers.batch_jobs import batch_job
from workers.celery_worker import read_plain_json
from workers.pool import TaskPool, Traced, pool_for


class Batches:
    """The engine's side: which micro-batches are open."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.cancelled: list[str] = []
        self.rejected: list[JobAttempt] = []

    def reject(self, task_id: str, key: JobAttempt, error: UnreadableRequest) -> None:
        assert error.code == "unreadable_job"
        self.rejected.append(key)

    def is_open(self, task_id: str) -> bool:
        return task_id in self.open

    def cancel_task(self, task_id: str) -> None:
        self.cancelled.append(task_id)


class Hub:
    """Runs at once what it is given."""

    def call_soon(self, callback: Any) -> None:
        callback()


class Request:
    """What Celery's request notes of a task."""

    def __init__(
        self,
        pool: TaskPool,
        batches: Batches,
        *,
        failed: int = 0,
        body: Any = b"{}",
        error: Exception | None = None,
        name: str = RUN_MICRO_BATCH,
        task_id: str = "task",
    ) -> None:
        self._batches = batches
        self._failed = failed
        self._error = error
        self.pid: int | None = None
        self.end: Traced | None = None
        args: tuple[Any, ...] = (name, task_id, {}, body, "json", "utf-8")
        pool.on_apply(self._trace, args, {}, self._ended, self._accepted)

    def _trace(self, _name: str, task_id: str, _request: Any, body: Any, *_: Any) -> tuple[int, Any, float]:
        if self._error is not None:
            raise self._error
        loads(body, "application/json", "utf-8", accept=["application/json"])
        if not self._failed:
            self._batches.open.add(task_id)
        return self._failed, "answer", 0.001

    def _accepted(self, pid: int, _time: float) -> None:
        self.pid = pid

    def _ended(self, traced: Traced) -> None:
        self.end = traced


def _pool() -> tuple[TaskPool, Batches]:
    batches = Batches()
    pool = pool_for(batches)(4)
    pool.register_with_event_loop(Hub())  # type: ignore[arg-type]
    return pool, batches


def test_a_micro_batch_ends_with_its_last_job_and_its_own_run_time() -> None:
    pool, batches = _pool()
    request = Request(pool, batches)
    assert request.pid is not None
    assert request.end is None

    batches.open.clear()
    pool.wake()

    assert request.end is not None
    assert request.end.value == "answer"
    assert request.end.runtime_s != 0.001


def test_a_micro_batch_that_failed_ends_at_once() -> None:
    pool, batches = _pool()

    request = Request(pool, batches, failed=1)

    assert request.end is not None
    assert request.end.failed


def test_a_micro_batch_that_cannot_be_read_ends_as_failed_and_the_pool_goes_on() -> None:
    pool, batches = _pool()

    unreadable = Request(pool, batches, body=b"\xff")
    other = Request(pool, batches, task_id="other")

    assert unreadable.end is not None
    assert unreadable.end.failed
    assert batches.open == {"other"}
    assert other.end is None
    assert batches.rejected == []


def _body(*jobs: BatchJob) -> str:
    """Render a micro-batch as a scheduler sends it, the innermost of each job's request a bare `BROKEN`."""
    batch = MicroBatch(batch_id=uuid4(), pool="pool", incarnation="me", term=1, jobs=jobs)
    return json.dumps([[batch.model_dump(mode="json")], {}, {"chord": None}]).replace('"here"', "BROKEN")


def _job() -> BatchJob:
    """A job whose own text and schema name other jobs."""
    other = {"job_id": str(uuid4()), "attempt": 9}
    request = {"prompt": f'"}}]{json.dumps(other)}\\', "structured_outputs": {"json": other}, "seed": "here"}
    return batch_job().model_copy(update={"attempt": 3, "request": request})


BROKEN = [
    lambda body: body,
    lambda body: body.encode(),
    lambda body: memoryview(body.encode()),
    lambda body: body.replace("BROKEN", "1" * 5000),
    lambda body: body.replace("BROKEN", "[" * 50_000 + "]" * 50_000),
    lambda body: body.replace("BROKEN", '"\xff"').encode("latin-1"),
]


@pytest.mark.parametrize("spoil", BROKEN, ids=["word", "bytes", "buffer", "number", "depth", "encoding"])
def test_the_only_job_of_a_body_that_cannot_be_read_ends_at_once(spoil: Callable[[str], Any]) -> None:
    read_plain_json()
    pool, batches = _pool()
    job = _job()

    request = Request(pool, batches, body=spoil(_body(job)))

    assert request.end is not None
    assert batches.rejected == [JobAttempt(job.job_id, 3)]


@pytest.mark.parametrize(
    "body",
    [
        _body(_job(), _job()),
        _body(_job()).partition("BROKEN")[0],
        _body(_job()).replace("BROKEN", '"'),
        _body()[:-9] + "BROKEN",
        "BROKEN",
    ],
    ids=["two", "cut off", "open string", "none", "no batch"],
)
def test_jobs_that_may_not_be_to_blame_are_left_to_the_leader(body: str) -> None:
    pool, batches = _pool()

    assert Request(pool, batches, body=body).end is not None
    assert batches.rejected == []


def test_a_job_that_cannot_even_be_rejected_does_not_end_the_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, batches = _pool()

    def fail(*_: Any) -> None:
        raise KeyError("told to fail")

    monkeypatch.setattr(batches, "reject", fail)

    assert Request(pool, batches, body=_body(_job())).end is not None


def test_no_job_is_to_blame_for_a_worker_that_cannot_run_tasks() -> None:
    pool, batches = _pool()
    error = RuntimeError("worker task registry is empty")

    assert Request(pool, batches, body=_body(_job()), error=error).end is not None
    assert batches.rejected == []


def test_json_is_read_as_what_it_says() -> None:
    read_plain_json()

    odd = {"__type__": "nothing that kombu knows", "__value__": [1, {"__type__": "uuid", "__value__": 2}]}

    assert loads(json.dumps(odd).encode(), "application/json", "utf-8", accept=["application/json"]) == odd


def test_a_terminated_micro_batch_is_cancelled_and_says_nothing_more() -> None:
    pool, batches = _pool()
    request = Request(pool, batches)
    assert request.pid is not None

    pool.terminate_job(request.pid)
    batches.open.clear()
    pool.wake()

    assert batches.cancelled == ["task"]
    assert request.end is None


def test_other_tasks_run_on_a_side_thread() -> None:
    pool, batches = _pool()

    request = Request(pool, batches, name="something.else")

    eventually(lambda: request.end, what="the side task")
    pool.on_stop()


def test_a_micro_batch_that_ended_after_the_hubs_last_turn_ends_with_the_pool() -> None:
    pool, batches = _pool()
    drained, given_up = Request(pool, batches), Request(pool, batches, task_id="other")
    batches.open.discard("task")

    pool.on_stop()

    assert drained.end is not None
    assert given_up.end is None

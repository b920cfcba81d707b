"""The Celery pool, driven as Celery drives it."""

from __future__ import annotations

import json
from typing import Any

from kombu.serialization import loads

from lorayard.contract.tasks import RUN_MICRO_BATCH
from tests.polling import eventually
from workers.celery_worker import read_plain_json
from workers.pool import TaskPool, Traced, pool_for


class Batches:
    """The engine's side: which micro-batches are open."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.cancelled: list[str] = []

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
        is_readable: bool = True,
        name: str = RUN_MICRO_BATCH,
        task_id: str = "task",
    ) -> None:
        self._batches = batches
        self._failed = failed
        self._is_readable = is_readable
        self.pid: int | None = None
        self.end: Traced | None = None
        args: tuple[Any, ...] = (name, task_id, {}, b"", "json", "utf-8")
        pool.on_apply(self._trace, args, {}, self._ended, self._accepted)

    def _trace(self, _name: str, task_id: str, *_: Any) -> tuple[int, Any, float]:
        if not self._is_readable:
            raise ValueError("a body that cannot be read")
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

    unreadable = Request(pool, batches, is_readable=False)
    other = Request(pool, batches, task_id="other")

    assert unreadable.end is not None
    assert unreadable.end.failed
    assert batches.open == {"other"}
    assert other.end is None


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

"""The shells of the Celery tasks; what they do is in plain functions that tests call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol
from uuid import UUID

import structlog
from celery import Celery, Task
from pydantic import ValidationError

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.reading import UnreadableRequest
from lorayard.contract.tasks import PING, RUN_MICRO_BATCH
from lorayard.contract.version import RELEASE

_TOKENS: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"?(\s*:)?|([\[\]{}])|(-?\d+)', re.DOTALL)
"""A string's text and the colon after it if it is a name, a bracket, or a number."""

_JOB_DEPTH: Final = 5
"""The brackets around a job's own fields: Celery's triple, its arguments, the batch, its jobs, the job."""

logger = structlog.get_logger(__name__)


class Joinable(Protocol):
    """The batch in flight."""

    def join(self, task_id: str, jobs: Iterable[BatchJob]) -> int:
        """Let jobs join; returns how many were new."""
        ...

    def reject(self, task_id: str, key: JobAttempt, error: UnreadableRequest) -> None:
        """End a job that cannot be read."""
        ...


def join_micro_batch(
    engine: Joinable, task_id: str, body: Any, *, pool: str, incarnation: str
) -> dict[str, Any]:
    """Let a micro-batch join if it is meant for this incarnation; raises pydantic's ValidationError.

    Its jobs are read one by one: one that cannot be read ends alone. If not even its name can be, it is left
    to the leader, which misses it in what this worker says it holds.
    """
    apart = isinstance(body, dict) and isinstance(body.get("jobs"), list)
    batch = MicroBatch.model_validate({**body, "jobs": ()} if apart else body)
    if (batch.pool, batch.incarnation) != (pool, incarnation):
        logger.warning("micro_batch.not_ours", batch_id=str(batch.batch_id), incarnation=batch.incarnation)
        return {"batch_id": str(batch.batch_id), "joined": 0, "not_ours": True}
    sent = body["jobs"]
    jobs = [job for one in sent if (job := _readable(one, engine, task_id)) is not None]
    joined = engine.join(task_id, jobs)
    logger.info("micro_batch.joined", batch_id=str(batch.batch_id), jobs=len(sent), new=joined)
    return {"batch_id": str(batch.batch_id), "joined": joined}


def _readable(job: Any, engine: Joinable, task_id: str) -> BatchJob | None:
    try:
        return BatchJob.model_validate(job)
    except ValidationError as error:
        reason = str(error)[:300]
    logger.warning("micro_batch.job_unreadable", task_id=task_id, error=reason)
    with suppress(TypeError, ValueError, KeyError):
        key = JobAttempt(UUID(job["job_id"]), int(job["attempt"]))
        engine.reject(task_id, key, unreadable(reason))
    return None


def unreadable(reason: str) -> UnreadableRequest:
    """Say why a job ends that came in a form that cannot be read."""
    message = f"worker {RELEASE} cannot read the job as its scheduler sent it: {reason}"
    return UnreadableRequest("unreadable_job", message)


def only_job_in(body: bytes) -> JobAttempt | None:
    """Find the attempt that a micro-batch of one job is about, although its body is not JSON.

    None if it has several jobs, may have had, or does not name the one. Only what is at the depth of a job's
    own fields counts: what users wrote is in strings or lies deeper.
    """
    jobs: list[dict[bytes, bytes]] = []
    depth, name, is_whole = 0, b"", False
    for token in _TOKENS.finditer(body):
        text, colon, bracket, number = token.groups()
        if bracket is not None:
            is_whole |= bracket == b"]" and depth == _JOB_DEPTH - 1
            depth += 1 if bracket in b"[{" else -1
            jobs += [{}] if bracket == b"{" and depth == _JOB_DEPTH else []
        elif colon is not None:
            name = text
        elif depth == _JOB_DEPTH and jobs:
            jobs[-1].setdefault(name, text if number is None else number)
    if not is_whole or len(jobs) != 1:
        return None
    with suppress(KeyError, ValueError):
        return JobAttempt(UUID(jobs[0][b"job_id"].decode()), int(jobs[0][b"attempt"]))
    return None


def define_tasks(
    app: Celery, engine: Joinable, *, pool: str, incarnation: str, answer: Callable[[UUID], None]
) -> None:
    """Register the worker's tasks under their wire names; `answer` tells the leader of a ping."""

    @app.task(name=RUN_MICRO_BATCH, bind=True, ignore_result=True, acks_late=False)
    def run_micro_batch(self: Task, batch: Any) -> dict[str, Any]:
        return join_micro_batch(engine, self.request.id, batch, pool=pool, incarnation=incarnation)

    @app.task(name=PING, ignore_result=True, acks_late=False)
    def ping(ping: str) -> None:
        answer(UUID(ping))

"""The shells of the Celery tasks; what they do is in plain classes that tests call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from uuid import UUID

import structlog
from celery import Celery, Task
from pydantic import ValidationError

from lorayard.contract.messages import BatchJob, MicroBatch
from lorayard.contract.tasks import RUN_MICRO_BATCH

logger = structlog.get_logger(__name__)


class Joinable(Protocol):
    """The batch in flight."""

    def join(self, task_id: str, jobs: Iterable[BatchJob]) -> int:
        """Let jobs join; returns how many were new."""
        ...


class MicroBatchDesk:
    """Accepts the micro-batches meant for this incarnation and ignores all others."""

    def __init__(self, pool: str, incarnation: str, engine: Joinable) -> None:
        self._pool = pool
        self._incarnation = incarnation
        self._engine = engine

    def accept(self, task_id: str, body: Any) -> dict[str, Any]:
        """Let a micro-batch join; raises pydantic's ValidationError when it is not one.

        Its jobs are read one by one: one that is none is left to the leader, which misses it in what this
        worker says it holds.
        """
        apart = isinstance(body, dict) and isinstance(body.get("jobs"), list)
        batch = MicroBatch.model_validate({**body, "jobs": ()} if apart else body)
        if (batch.pool, batch.incarnation) != (self._pool, self._incarnation):
            logger.warning(
                "micro_batch.not_ours", batch_id=str(batch.batch_id), incarnation=batch.incarnation
            )
            return {"batch_id": str(batch.batch_id), "joined": 0, "not_ours": True}
        sent = body["jobs"]
        jobs = [job for one in sent if (job := _readable(one, batch.batch_id)) is not None]
        joined = self._engine.join(task_id, jobs)
        logger.info("micro_batch.joined", batch_id=str(batch.batch_id), jobs=len(sent), new=joined)
        return {"batch_id": str(batch.batch_id), "joined": joined}


def _readable(job: Any, batch_id: UUID) -> BatchJob | None:
    try:
        return BatchJob.model_validate(job)
    except ValidationError as error:
        logger.warning("micro_batch.job_unreadable", batch_id=str(batch_id), error=str(error)[:300])
        return None


def define_tasks(app: Celery, desk: MicroBatchDesk) -> None:
    """Register the worker's tasks under their wire names."""

    @app.task(name=RUN_MICRO_BATCH, bind=True, ignore_result=True, acks_late=False)
    def run_micro_batch(self: Task, batch: Any) -> dict[str, Any]:
        return desk.accept(self.request.id, batch)

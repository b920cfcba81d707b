"""Tells everyone of jobs that the leader has ended: clients on their streams, Flower, and the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from db.records import FinishedJob
from db.repositories.jobs import JobRepository
from lorayard.server.replies import announce
from scheduler.deliveries import Deliveries
from scheduler.flower_reporter import FlowerReporter
from scheduler.leader_context import LeaderContext
from scheduler.queue_feed import QueueFeed

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Endings:
    """What follows a committed end; raises redis-py's errors."""

    context: LeaderContext
    queue: QueueFeed
    flower: FlowerReporter
    deliveries: Deliveries

    def end_put_aside(self) -> None:
        """End the jobs at which the leader itself has failed again and again."""
        put_aside = self.queue.take_put_aside()
        self.context.items.attempt_all("job_put_aside", put_aside, str, self._fail)

    def end_hopeless(self) -> None:
        """End the jobs whose first token cannot come in time; those whose deadline has passed are reaped."""
        hopeless = [job.job_id for job in self.queue.backlog.take_hopeless()]
        self.context.items.attempt_all("job_hopeless", hopeless, str, self._expire)

    def _fail(self, job_ids: Sequence[UUID]) -> None:
        message = (
            "the scheduler failed at the job three times, also by itself: its log says how at "
            "leader.item_failed; report that, and submit the job again once it is mended"
        )
        self.follow(
            self.context.transact(lambda c: JobRepository(c).fail_queued(job_ids, "internal", message))
        )

    def _expire(self, job_ids: Sequence[UUID]) -> None:
        self.follow(self.context.transact(lambda c: JobRepository(c).expire_infeasible(job_ids)))

    def follow(self, finished: Sequence[FinishedJob]) -> None:
        """Take ended jobs out of the backlog and tell of them; one that cannot be told of is looked up."""
        ended = [job for job in finished if job.state.is_terminal]
        self.context.items.attempt_all("endings", ended, lambda job: str(job.job_id), self._tell)

    def _tell(self, ended: Sequence[FinishedJob]) -> None:
        for job in ended:
            self.queue.take(job.job_id)
            self.queue.fairness.settle(job.job_id, job.result.prompt_tokens, job.result.completion_tokens)
            self.deliveries.arrived([job.job_id])
            logger.info(
                "job.ended",
                job_id=str(job.job_id),
                state=job.state.value,
                attempt=job.attempt,
                error_code=job.result.error.code if job.result.error else None,
            )
        self.flower.ended(ended)
        self.context.tell(lambda pipeline: announce(pipeline, ended))

"""Tells everyone of jobs that the leader has ended: clients on their streams, Flower, and the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from db.records import FinishedJob
from lorayard.server.replies import announce, send
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

    def follow(self, finished: Sequence[FinishedJob]) -> None:
        """Take ended jobs out of the backlog and tell of them."""
        ended = [job for job in finished if job.state.is_terminal]
        if not ended:
            return
        for job in ended:
            self.queue.backlog.take(job.job_id)
            logger.info(
                "job.ended",
                job_id=str(job.job_id),
                state=job.state.value,
                attempt=job.attempt,
                error_code=job.result.error.code if job.result.error else None,
            )
        self.flower.ended(ended)
        pipeline = self.context.redis.pipeline(transaction=False)
        announce(pipeline, ended)
        send(pipeline)

"""Lets what has ended long ago leave the ledger, a batch at a time, from the oldest on."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from db.records import DeletedJobs
from db.repositories.retention import RetentionRepository
from scheduler.leader_context import LeaderContext

BATCH_JOBS: Final = 500
BATCH_REJECTS: Final = 50
"""Each may hold a body of a megabyte."""

logger = structlog.get_logger(__name__)


class Retention:
    """Mutable: how far the present pass has come; raises DatabaseUnavailable and Deposed.

    A pass begins at the oldest job and goes by what still waits for its webhook. A leader that dies in the
    middle leaves nothing half done: its successor begins a pass of its own.
    """

    def __init__(self, context: LeaderContext, retention_s: float, batch_jobs: int = BATCH_JOBS) -> None:
        self._context = context
        self._retention_s = retention_s
        self._batch_jobs = batch_jobs
        self._after: datetime | None = None

    def delete_batch(self) -> bool:
        """Delete one batch of jobs and one of intake rejects; True when the pass has more to look at."""
        if self._retention_s == 0:
            return False
        try:
            done = self._context.transact(self._delete_jobs)
            rejects = self._context.transact(self._delete_rejects)
        except SQLAlchemyError as error:
            # Nobody waits for this: a statement that took too long must not disturb the leader's work.
            logger.warning("retention.not_deleted", error=str(error))
            self._after = None
            return False
        has_more = done.examined >= self._batch_jobs
        self._after = done.last_ended_at if has_more else None
        if done.deleted or rejects:
            kept = done.examined - done.deleted
            logger.info("retention.deleted", jobs=done.deleted, rejects=rejects, kept_for_webhooks=kept)
        return has_more or rejects >= BATCH_REJECTS

    def _delete_jobs(self, connection: Connection) -> DeletedJobs:
        return RetentionRepository(connection).delete_jobs(
            self._context.pool, self._retention_s, self._batch_jobs, self._after
        )

    def _delete_rejects(self, connection: Connection) -> int:
        return RetentionRepository(connection).delete_rejects(
            self._context.pool, self._retention_s, BATCH_REJECTS
        )

"""Lets what has ended long ago leave the ledger, a batch at a time, from the oldest on."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from db.records import DeletedBatch
from db.repositories.retention import RetentionRepository
from scheduler.leader_context import LeaderContext

BATCH_JOBS: Final = 500
BATCH_REJECTS: Final = 50
"""Each may hold a body of a megabyte."""
BATCH_KEYS: Final = 2000

logger = structlog.get_logger(__name__)


class Retention:
    """Mutable: how far the present pass has come; raises DatabaseUnavailable and Deposed.

    A pass begins at the oldest job, and the oldest key, and goes by what is still needed. A leader that dies
    in the middle leaves nothing half done: its successor begins a pass of its own.
    """

    def __init__(
        self, context: LeaderContext, retention_s: float, keys_s: float = 0.0, batch_jobs: int = BATCH_JOBS
    ) -> None:
        self._context = context
        self._retention_s = retention_s
        self._keys_s = keys_s
        self._batch_jobs = batch_jobs
        self._jobs_after: datetime | None = None
        self._keys_after: datetime | None = None

    def delete_batch(self) -> bool:
        """Delete a batch of jobs, of intake rejects and of keys; True when the pass has more to look at."""
        try:
            has_more = self._retention_s > 0 and self._delete_jobs_and_rejects()
            return (self._keys_s > 0 and self._delete_keys()) or has_more
        except SQLAlchemyError as error:
            # Nobody waits for this: a statement that took too long must not disturb the leader's work.
            logger.warning("retention.not_deleted", error=str(error))
            self._jobs_after = self._keys_after = None
            return False

    def _delete_jobs_and_rejects(self) -> bool:
        done = self._context.transact(self._delete_jobs)
        rejects = self._context.transact(self._delete_rejects)
        has_more = done.examined >= self._batch_jobs
        self._jobs_after = done.reached if has_more else None
        if done.deleted or rejects:
            kept = done.examined - done.deleted
            logger.info("retention.deleted", jobs=done.deleted, rejects=rejects, kept_for_webhooks=kept)
        return has_more or rejects >= BATCH_REJECTS

    def _delete_keys(self) -> bool:
        """Delete what no repeat is known by any more; a key stays as long as its job does."""
        done = self._context.transact(
            lambda connection: RetentionRepository(connection).delete_keys(
                self._context.pool, self._keys_s, BATCH_KEYS, self._keys_after
            )
        )
        has_more = done.examined >= BATCH_KEYS
        self._keys_after = done.reached if has_more else None
        if done.deleted:
            logger.info("retention.keys_deleted", keys=done.deleted)
        return has_more

    def _delete_jobs(self, connection: Connection) -> DeletedBatch:
        return RetentionRepository(connection).delete_jobs(
            self._context.pool, self._retention_s, self._batch_jobs, self._jobs_after
        )

    def _delete_rejects(self, connection: Connection) -> int:
        return RetentionRepository(connection).delete_rejects(
            self._context.pool, self._retention_s, BATCH_REJECTS
        )

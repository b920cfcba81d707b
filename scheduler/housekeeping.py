"""Keeps the ledger tidy: usage folded into hours, old wishes to cancel forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection

from db.repositories.jobs import JobRepository
from db.repositories.usage import UsageRepository
from scheduler.leader_context import LeaderContext

FOLD_DELTAS: Final = 2000
FORGET_CANCELS_AFTER_S: Final = 86_400.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The chores of one term; raises DatabaseUnavailable and Deposed."""

    context: LeaderContext

    def fold_usage(self) -> bool:
        """Do one portion; True if there is more to do at once."""
        folded = self.context.transact(self._fold_usage)
        if folded:
            logger.info("usage.folded", deltas=folded)
        return folded >= FOLD_DELTAS

    def _fold_usage(self, connection: Connection) -> int:
        JobRepository(connection).forget_cancellations(FORGET_CANCELS_AFTER_S)
        return UsageRepository(connection).fold(FOLD_DELTAS)

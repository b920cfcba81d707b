"""Keeps the ledger tidy: usage folded into hours, old wishes to cancel forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection

from db.repositories.jobs import JobRepository
from db.repositories.usage import UsageRepository
from scheduler.office import Office

FOLD_DELTAS: Final = 2000
FORGET_CANCELS_AFTER_S: Final = 86_400.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The chores of one term; raises DatabaseUnavailable and Deposed."""

    office: Office

    def tidy(self) -> bool:
        """Do one portion; True where there is more to do at once."""
        folded = self.office.transact(self._tidy)
        if folded:
            logger.info("usage.folded", deltas=folded)
        return folded >= FOLD_DELTAS

    def _tidy(self, connection: Connection) -> int:
        JobRepository(connection).forget_cancellations(FORGET_CANCELS_AFTER_S)
        return UsageRepository(connection).fold(FOLD_DELTAS)

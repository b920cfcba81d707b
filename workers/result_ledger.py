"""Where results go: the ledger's finished jobs, written in numbered groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from db.database import Database
from db.records import EndedAttempt, FinishedJob
from db.repositories.finish import FinishRepository


class ResultLedger(Protocol):
    """Where results go; raises whatever Postgres and its driver raise."""

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Write the group of a number; returns what it moved."""
        ...

    def read_back(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Read those that are written already."""
        ...


class PostgresLedger:
    """Writes as one incarnation."""

    def __init__(self, database: Database, incarnation: str) -> None:
        self._database = database
        self._incarnation = incarnation

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Write the group of a number; returns what it moved."""
        return self._database.run(lambda c: FinishRepository(c).finish(self._incarnation, seq, ended))

    def read_back(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Read those that are written already."""
        return self._database.run(lambda c: FinishRepository(c).read_back(self._incarnation, ended))

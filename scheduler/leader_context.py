"""One term of leadership: everything the leader does to ledger and Redis is done under its term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from redis import Redis
from sqlalchemy import Connection

from db.database import Database
from db.errors import Deposed
from db.repositories.terms import TermRepository
from lorayard.contract.keys import PoolKeys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderContext:
    """The right to lead one pool for one term, with what it is exercised on."""

    pool: str
    term: int
    database: Database
    redis: Redis

    @property
    def keys(self) -> PoolKeys:
        """The Redis names of the pool."""
        return PoolKeys(self.pool)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that holds the term; raises Deposed, DatabaseUnavailable."""

        def under_term(connection: Connection) -> T:
            TermRepository(connection).check(self.pool, self.term)
            return work(connection)

        return self.database.run(under_term)

    def heard_of_term(self, stored: int) -> None:
        """Compare the term that a guarded write found in Redis; raises Deposed if it is not ours."""
        if stored != self.term:
            raise Deposed(
                f"Redis has term {stored} of pool {self.pool}, ours is {self.term}: stop acting for it"
            )

    def enter(self) -> None:
        """Write the term into Redis while the ledger vouches for it, so that older leaders' writes fail.

        The ledger decides: a higher term in Redis than the ledger's own is left from another ledger.
        """
        self.transact(lambda _: self.redis.set(self.keys.term, self.term))

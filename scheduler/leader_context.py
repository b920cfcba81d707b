"""One term of leadership: everything the leader does to ledger and Redis is done under its term."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypeVar
from uuid import UUID

from redis import Redis
from sqlalchemy import Connection

from db.database import Database
from db.errors import Deposed, ForeignLedger
from db.repositories.terms import TermRepository
from lorayard.contract.keys import PoolKeys
from scheduler.item_failures import ItemFailures

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderContext:
    """The right to lead one pool for one term, with what it is exercised on."""

    pool: str
    term: int
    ledger: UUID
    database: Database
    redis: Redis
    items: ItemFailures = field(default_factory=lambda: ItemFailures(time.monotonic))

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

    def script(self, name: str) -> GuardedScript:
        """Prepare a script of this room that begins with `guard.lua`."""
        return GuardedScript(self, lua("guard") + lua(name))

    def heard_of_term(self, term: int, ledger: str) -> None:
        """Compare what a guarded write found in Redis; raises ForeignLedger, or Deposed if another leads."""
        if ledger != str(self.ledger):
            raise ForeignLedger(
                f"Redis has pool {self.pool} for the ledger {ledger}, this one is {self.ledger}: give each "
                "ledger a Redis of its own, or stop the other's schedulers and run `lorayard ledger adopt`"
            )
        if term != self.term:
            raise Deposed(
                f"Redis has term {term} of pool {self.pool}, ours is {self.term}: stop acting for it"
            )

    def enter(self) -> None:
        """Write the term into Redis while the ledger vouches for it, so that older leaders' writes fail.

        The ledger decides: a higher term in Redis is left from what the same ledger has forgotten.
        Raises ForeignLedger if Redis has the pool for another one.
        """
        keys = [self.keys.term, self.keys.ledger]
        enter = self.redis.register_script(lua("enter"))
        reply = self.transact(lambda _: enter(keys=keys, args=[self.term, str(self.ledger)]))
        self.heard_of_term(int(reply[0]), reply[1].decode())


class GuardedScript:
    """A Lua script that does nothing unless term and ledger of its leader are those that count."""

    def __init__(self, context: LeaderContext, source: str) -> None:
        self._context = context
        self._script = context.redis.register_script(source)

    def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """Run it and return what it replies besides; raises Deposed, ForeignLedger and redis-py's errors."""
        context = self._context
        reply: list[Any] = self._script(
            keys=[context.keys.term, context.keys.ledger, *keys],
            args=[context.term, str(context.ledger), *args],
        )
        context.heard_of_term(int(reply[0]), reply[1].decode())
        return reply[2:]


def lua(name: str) -> str:
    """Read a script of this room."""
    return files("scheduler").joinpath(f"{name}.lua").read_text()

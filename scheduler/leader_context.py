"""One term of leadership: everything the leader does to ledger and Redis is done under its term."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from redis import Redis
from redis.client import Pipeline
from sqlalchemy import Connection

from db.database import Database
from db.errors import Deposed, ForeignLedger
from db.repositories.terms import TermRepository
from lorayard.contract.keys import PoolKeys
from lorayard.contract.messages import Command
from lorayard.server.replies import is_late
from lorayard.transport.refusals import is_out_of_memory
from lorayard.transport.server_check import UnusableRedis, look_at
from scheduler.item_failures import ItemFailures

T = TypeVar("T")

MAX_UNTOLD: Final = 5_000
"""Commands kept while Redis has no room for them, of at most about 10 KB; clients look up what they miss."""

MAX_COMMANDS: Final = 10_000
"""In the stream of one worker, from which the oldest go first."""

logger = structlog.get_logger(__name__)


class Untold:
    """Mutable: commands that Redis had no room for, the oldest of which give way."""

    def __init__(self) -> None:
        self._commands: deque[tuple[Any, ...]] = deque(maxlen=MAX_UNTOLD)

    def keep(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Keep them behind those that are kept already."""
        if lost := max(0, len(self._commands) + len(commands) - MAX_UNTOLD):
            logger.warning("leader.untold_dropped", commands=lost)
        self._commands.extend(commands)

    @contextmanager
    def taken(self) -> Iterator[list[tuple[Any, ...]]]:
        """Hand them out to be sent; after a failure they are kept again."""
        commands = list(self._commands)
        self._commands.clear()
        try:
            yield commands
        except BaseException:
            self._commands.extendleft(reversed(commands))
            raise


@dataclass(frozen=True, slots=True)
class LeaderContext:
    """The right to lead one pool for one term, with what it is exercised on."""

    pool: str
    term: int
    ledger: UUID
    database: Database
    redis: Redis
    untold: Untold = field(default_factory=Untold)
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

    def tell(self, fill: Callable[[Pipeline], object] = lambda _pipeline: None) -> None:
        """Send what `fill` puts into a pipeline, and what is untold; raises redis-py's errors.

        What a Redis at its memory limit has no room for is kept, and goes out with what makes room: the
        leader may acknowledge and delete although it could not tell.
        """
        with self.untold.taken() as commands:
            pipeline = self.redis.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)  # type: ignore[no-untyped-call]
            fill(pipeline)
            sent = [words for words, _ in pipeline.command_stack]
            answers = pipeline.execute(raise_on_error=False)
            refused = _refused(sent, answers)
            failures = [one for one in answers if isinstance(one, Exception) and not _is_no_failure(one)]
            if failures:
                raise failures[0]
        if len(refused) > len(commands):
            logger.warning("leader.redis_full", untold=len(refused))
        self.untold.keep(refused)

    def command_worker(self, incarnation: str, command: Command) -> None:
        """Send a worker a command; raises as `tell` does."""
        stream = self.keys.commands(incarnation)
        self.tell(lambda pipeline: pipeline.xadd(stream, command.to_entry(), maxlen=MAX_COMMANDS))

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
        Raises ForeignLedger if Redis has the pool for another one, and UnusableRedis if the server, which may
        be another one than before an outage, must not be given jobs.
        """
        if (refusal := look_at(self.redis).refusal) is not None:
            raise UnusableRedis(f"Redis cannot be used: {refusal}")
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


def _is_no_failure(error: Exception) -> bool:
    return is_out_of_memory(error) or is_late(error)


def _refused(sent: Sequence[tuple[Any, ...]], answers: Sequence[object]) -> list[tuple[Any, ...]]:
    """Find what Redis had no room for, with the life span of what is not there without it."""
    keys = {words[1] for words, answer in zip(sent, answers, strict=True) if is_out_of_memory(answer)}
    return [
        words
        for words, answer in zip(sent, answers, strict=True)
        if is_out_of_memory(answer) or (words[0] == "EXPIRE" and words[1] in keys)
    ]


def lua(name: str) -> str:
    """Read a script of this room."""
    return files("scheduler").joinpath(f"{name}.lua").read_text()

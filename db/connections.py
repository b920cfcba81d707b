"""The connections of a pool: every answer has a limit that the client keeps; idle ones are tried first.

And a session outside it, that only listens.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from db.errors import DatabaseUnavailable

PING_AFTER_S: Final = 1.0

ANSWER_GRACE_S: Final = 5.0
"""So much longer than a statement may take is an answer waited for, and so long that to a ping."""

MAX_LOOK_S: Final = 0.5
"""A look that comes later than this after the last one counts no more: this process was stopped meanwhile."""

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when its server keeps it waiting for longer than `answer_s`.

    Only time in which this process ran counts: one that was stopped first reads what has come meanwhile.
    A server that hangs (stopped, its disk stuck) ends no statement by its own limits, and its kernel goes on
    acknowledging, so neither keepalives nor `tcp_user_timeout` notice it. Then psycopg.OperationalError is
    raised.
    """

    answer_s: float | None = None
    """Mutable: the limit for each statement, and each batch of its rows; None for none."""

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Wait for one answer, which psycopg consumes step by step."""
        if self.answer_s is not None:
            gen = self._within(gen, self.answer_s)
        return super().wait(gen, *arguments, **options)

    def _within(self, gen: Generator[Any, Any, T], limit_s: float) -> Generator[Any, Any, T]:
        waited_s, looked_at = 0.0, time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                # psycopg looks up every tenth of a second. What is there is read, however late it came.
                now = time.monotonic()
                waited_s, looked_at = waited_s + min(now - looked_at, MAX_LOOK_S), now
                if not ready and waited_s >= limit_s:
                    gen.close()
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {limit_s:g} s, so it is given up")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value


def watch_connections(engine: Engine, statement_timeout_ms: int) -> None:
    """Bound all answers, what the pool itself asks more tightly, and try connections that were idle for long.

    One that Postgres lost meanwhile is replaced. One that has just been used is not tried: a restart then
    fails a transaction, as it does one that is open. No limit for statements (0) is none for their answers.
    """
    answer_s = statement_timeout_ms / 1000 + ANSWER_GRACE_S if statement_timeout_ms > 0 else None

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.answer_s = ANSWER_GRACE_S
        return connection

    @event.listens_for(engine, "checkin")
    def rest(connection: BoundedConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()
        if connection is not None:  # one that was lost
            connection.answer_s = ANSWER_GRACE_S

    @event.listens_for(engine, "checkout")
    def begin(connection: BoundedConnection, record: ConnectionPoolEntry, _: Any) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is not None and time.monotonic() - idle_since >= PING_AFTER_S:
            try:
                engine.dialect.do_ping(connection)  # type: ignore[arg-type]
            except psycopg.Error as error:
                raise InvalidatePoolError from error
        connection.answer_s = answer_s


class Listener:
    """A session that hears what transactions tell one channel, by `pg_notify`, once they have committed.

    For an event loop, or `select`: its file becomes readable when there is something to `take`.
    """

    def __init__(self, connection: Connection, session: psycopg.Connection[Any], channel: str) -> None:
        """`connection` must have no transaction; it leaves its pool."""
        connection.exec_driver_sql(f"LISTEN {channel}")
        connection.detach()
        self._connection = connection
        self._session = session
        self._file = session.fileno()

    def fileno(self) -> int:
        """Return the session's file."""
        return self._file

    def take(self) -> int:
        """Count what was told since the last time; raises DatabaseUnavailable if the session is lost."""
        try:
            self._session.pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"a session that listened is lost: {str(error).strip()}") from error
        told = 0
        while self._session.pgconn.notifies() is not None:
            told += 1
        return told

    def close(self) -> None:
        """End the session, lost or not."""
        with suppress(DBAPIError):
            self._connection.close()
        self._session.close()

"""One pool of connections to the ledger, whose transactions are retried when Postgres asks for it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import quote
from sqlalchemy import URL, Connection, Engine, TextClause, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.connections import Listener, watch_connections
from db.errors import DatabaseUnavailable, InvalidDatabaseUrl
from db.judge import needs_new_connection, reason_of, sqlstate_of
from db.settings import DatabaseSettings
from lorayard.contract.wording import without_password

T = TypeVar("T")

RETRIED_SQLSTATES: Final = frozenset({"40P01", "40001"})
"""Deadlock detected, serialization failure: Postgres has rolled back and asks for another try."""

UNREACHABLE_CLASSES: Final = frozenset({"08", "28", "3D", "53", "57"})
"""Connection lost, refused at the door, no such database, out of resources, shutting down or starting."""

STATEMENT_TIMEOUT: Final = "57014"

_HOST: Final = re.compile(r"(?P<name>\[[^\[\]@]+\]|[^\[\]:@]+)(:(?P<port>\d+))?")
_TAKES_WRITES: Final = {"target_session_attrs": "read-write"}

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever the server's default is: guarded UPDATEs rely on it."""

MAX_TRIES: Final = 5
CONNECT_TIMEOUT_S: Final = 5
POOL_TIMEOUT_S: Final = 30

MAX_HOLD_MS: Final = 4000
"""So long may a transaction of the pipeline wait for a lock, or hold its own while its process is stopped."""

MAX_IDLE_MS: Final = 60_000
"""So long may a migration hold its locks while its process does nothing."""


class Database:
    """The ledger as one process sees it. Safe to share between threads; after a fork make a new one.

    Raises InvalidDatabaseUrl at once; connects only when first used. With `lock_timeout_ms`, no transaction
    waits longer for one lock, nor holds locks for more than MAX_HOLD_MS while this process does nothing;
    without, `max_idle_ms` bounds the latter. All of it is set in each transaction, so that a pooler in
    transaction mode may stand in between. A server that hangs, though its connections live, is given up
    a moment after a statement's limit (`db/connections.py`).
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        statement_timeout_ms: int = 30_000,
        lock_timeout_ms: int | None = None,
        max_idle_ms: int = MAX_IDLE_MS,
        name: str = "lorayard",
    ) -> None:
        self._url = parse_url(url)
        self._settings = _settings(statement_timeout_ms, lock_timeout_ms, max_idle_ms)
        self._engine: Engine = create_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_recycle=-1,  # the ping finds what is dead, however old
            isolation_level="AUTOCOMMIT",  # `transaction` says BEGIN itself, in one message with its settings
            query_cache_size=500,  # more than there are statements
            connect_args=_connect_args(name),
        )
        watch_connections(self._engine, statement_timeout_ms)

    @classmethod
    def from_settings(
        cls, settings: DatabaseSettings, *, lock_timeout_ms: int | None = None, name: str = "lorayard"
    ) -> Self:
        """Make it from what the edge has read."""
        return cls(
            settings.database_url.get_secret_value(),
            pool_size=settings.database_pool_size,
            statement_timeout_ms=settings.statement_timeout_ms,
            lock_timeout_ms=lock_timeout_ms,
            name=name,
        )

    @property
    def safe_url(self) -> str:
        """The URL without its passwords, fit for logs."""
        return without_password(self._url.render_as_string(hide_password=True))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open one transaction that commits at the end of the block; raises DatabaseUnavailable."""
        with self._judged(), self._engine.begin() as connection:
            connection.exec_driver_sql(f"{_BEGIN}; {self._settings}")
            yield connection

    def look(self, statement: TextClause, **values: str) -> Any:
        """Return the one value that a statement reads; raises DatabaseUnavailable.

        For whoever looks every moment: it goes out together with the settings, as one message and so as one
        transaction, and takes one trip to the server where `run` takes three.
        """
        with self._judged(), self._engine.connect() as connection:
            cursor = connection.exec_driver_sql(f"{self._settings}; {_filled_in(statement, values)}").cursor
            assert cursor is not None, "a statement that reads has a cursor"
            cursor.nextset()
            row = cursor.fetchone()
            assert row is not None, "a statement that reads has a row"
            return row[0]

    def listen(self, channel: str) -> Listener | None:
        """Open a session that hears a channel; raises DatabaseUnavailable.

        None if a pooler answers for the server: its sessions are everybody's, and what one is told gets lost.
        """
        with self._judged(), ExitStack() as closing:
            connection = closing.enter_context(self._engine.connect())
            session = connection.connection.dbapi_connection
            assert session is not None, "a connection that was just made has a session"
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            if session.info.backend_pid != pid:
                return None
            listener = Listener(connection, session, channel)  # type: ignore[arg-type]
            closing.pop_all()
            return listener

    @contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseUnavailable(
                f"no connection to {self.safe_url} came free: raise LORAYARD_DATABASE_POOL_SIZE"
            ) from error
        except DBAPIError as error:
            if needs_new_connection(error):
                # All idle ones go: after a fail-over they lead to the same read-only server.
                self._engine.dispose()
            if _is_unreachable(error):
                raise self._unavailable(error) from error
            raise

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own, again if Postgres reports a deadlock or a conflict."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except DBAPIError as error:
                if attempt == MAX_TRIES or sqlstate_of(error) not in RETRIED_SQLSTATES:
                    raise
                time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("the last try either returns or raises")

    def dispose(self) -> None:
        """Close every idle connection."""
        self._engine.dispose()

    def _unavailable(self, error: DBAPIError) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"Postgres at {self.safe_url} does not answer ({reason_of(error)}): "
            "check that it runs and that LORAYARD_DATABASE_URL is right"
        )


def parse_url(url: str) -> URL:
    """Read a Postgres URL and name the driver; raises InvalidDatabaseUrl without showing a password.

    Several hosts are written as libpq has them, `host1:5432,host2:5432`; without `target_session_attrs`, the
    one that takes writes is meant.
    """
    try:
        parsed = _with_hosts(url)
    except (ArgumentError, ValueError):  # their words may quote a piece of a password
        raise InvalidDatabaseUrl(
            "LORAYARD_DATABASE_URL is no URL: give e.g. postgresql://user:password@host:5432/lorayard, "
            "with what is special in user and password percent-encoded"
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise InvalidDatabaseUrl(
            f"LORAYARD_DATABASE_URL names {parsed.drivername!r}: only postgresql:// is supported"
        )
    _require_options(parsed)
    return parsed.set(drivername="postgresql+psycopg")


def _with_hosts(url: str) -> URL:
    """Move several hosts to where SQLAlchemy reads them, among the options."""
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    credentials, at, place = authority.rpartition("@")
    if "," not in place:
        parsed = make_url(url)
    else:
        hosts = [_HOST.fullmatch(host) for host in place.split(",")]
        names = [host["name"].strip("[]") for host in hosts if host]
        ports = [host["port"] or "5432" for host in hosts if host]
        if len(names) < len(hosts):
            raise ValueError("odd host or port")
        parsed = make_url(f"{scheme}{separator}{credentials}{at}{rest[len(authority) :]}")
        parsed = parsed.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})
    has_several = isinstance(named := parsed.query.get("host", ""), tuple) or "," in named
    return parsed.set(query=_TAKES_WRITES | dict(parsed.query)) if has_several else parsed


def _require_options(url: URL) -> None:
    """Let libpq look at the options, as it will at every connection."""
    options = {name: one if isinstance(one, str) else ",".join(one) for name, one in url.query.items()}
    try:
        make_conninfo(**options)
    except psycopg.Error as error:
        raise InvalidDatabaseUrl(
            f"LORAYARD_DATABASE_URL cannot be read: {str(error).strip()}; give options of libpq alone, "
            "others may be meant for another library"
        ) from None


def _filled_in(statement: TextClause, values: Mapping[str, str]) -> str:
    """Write values into a statement, for a message of several takes no parameters."""
    filled = statement.text
    for name, value in values.items():
        filled = re.sub(rf"(?<!:):{name}\b", lambda _, value=value: quote(value), filled)  # type: ignore[misc]
    return filled


def _connect_args(name: str) -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": name,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        # A pooler knows nothing of statements that were prepared on another of its connections. And a plan
        # kept from a small table goes on scanning the large one: leasing 16 of 40,000 jobs took 112 ms that
        # way and 9 ms with a plan of its own (Postgres 18, never analysed).
        "prepare_threshold": None,
    }


def _settings(statement_timeout_ms: int, lock_timeout_ms: int | None, max_idle_ms: int) -> str:
    """Write the one statement that every transaction begins with: a pooler passes on no startup options."""
    values: dict[str, str] = {"timezone": "UTC", "statement_timeout": f"{statement_timeout_ms}ms"}
    if lock_timeout_ms is None:
        values["idle_in_transaction_session_timeout"] = f"{max_idle_ms}ms"
    else:
        values |= {
            "lock_timeout": f"{lock_timeout_ms}ms",
            "idle_in_transaction_session_timeout": f"{MAX_HOLD_MS}ms",
            # A process that was stopped while it was being answered is not idle: the server sends in vain.
            "tcp_user_timeout": f"{MAX_HOLD_MS}ms",
        }
    settings = [f"set_config('{name}', '{value}', true)" for name, value in values.items()]
    if lock_timeout_ms is not None and statement_timeout_ms > 0:
        # Of one that was stopped in the middle of sending, the server waits for the rest of the message.
        limit_ms = 2 * statement_timeout_ms + MAX_HOLD_MS
        settings.append(
            "CASE WHEN current_setting('server_version_num')::int >= 170000 "
            f"THEN set_config('transaction_timeout', '{limit_ms}ms', true) END"
        )
    return f"SELECT {', '.join(settings)}"


def _is_unreachable(error: DBAPIError) -> bool:
    """Tell a lost or refused connection from a statement that failed for its own reasons."""
    if error.connection_invalidated:
        return True
    sqlstate = sqlstate_of(error)
    if sqlstate is None:
        return isinstance(error, (OperationalError, InterfaceError))
    return sqlstate[:2] in UNREACHABLE_CLASSES and sqlstate != STATEMENT_TIMEOUT

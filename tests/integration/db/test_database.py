"""A transaction is whole or not at all, and a Postgres that is away is named as such."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

import db.connections as connections_module
from db import Database
from db.connections import ANSWER_GRACE_S, BoundedConnection
from db.database import parse_url
from db.errors import DatabaseUnavailable
from tests.integration.db.ledger import Ledger


def ask(connection: Connection) -> None:
    """Ask for one row."""
    connection.execute(text("SELECT 1"))


def changed(url: str, **parts: object) -> str:
    return parse_url(url).set(**parts).render_as_string(hide_password=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [{"port": 1}, {"database": "nowhere"}, {"password": "wr0ng-s3cret"}])
def test_an_unreachable_postgres_is_named_without_its_password(
    database_url: str, parts: dict[str, object]
) -> None:
    url = changed(database_url, **parts)
    database = Database(url)

    with pytest.raises(DatabaseUnavailable, match="check that it runs") as raised:
        database.run(ask)

    assert str(parse_url(url).password) not in str(raised.value)
    assert "LORAYARD_DATABASE_URL" in str(raised.value)


def test_an_error_rolls_everything_back(ledger: Ledger) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO tenants (name) VALUES ('a')"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.database.run(work)

    assert ledger.sql("SELECT * FROM tenants") == []


def test_a_deadlock_is_tried_again(ledger: Ledger) -> None:
    ledger.sql("INSERT INTO tenants (name) VALUES ('a'), ('b')")
    both_locked = threading.Barrier(2, timeout=10)
    tries = []

    def lock(first: str, second: str) -> None:
        def work(connection: Connection) -> None:
            tries.append(first)
            touch = text("UPDATE tenants SET weight = weight + 1 WHERE name = :name")
            connection.execute(touch, {"name": first})
            if len(tries) <= 2:
                both_locked.wait()
            connection.execute(touch, {"name": second})

        ledger.database.run(work)

    other = threading.Thread(target=lock, args=("b", "a"))
    other.start()
    lock("a", "b")
    other.join()

    assert len(tries) == 3
    assert ledger.sql("SELECT weight FROM tenants") == [(3.0,), (3.0,)]


def test_an_ordinary_error_is_not_tried_again(ledger: Ledger) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("INSERT INTO tenants (name, weight) VALUES ('a', -1)"))

    with pytest.raises(IntegrityError):
        ledger.database.run(work)

    assert len(tries) == 1


def test_a_killed_connection_is_unavailable_once_and_replaced(ledger: Ledger) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid"

    def work(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        ledger.sql(kill, pid=pid)
        connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        ledger.database.run(work)

    ledger.database.run(ask)


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """Stop one process of the server: its kernel goes on acknowledging, but nobody answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def raw(connection: Connection) -> BoundedConnection:
    driven = connection.connection.driver_connection
    assert isinstance(driven, BoundedConnection)
    return driven


def test_a_server_that_hangs_in_a_statement_is_given_up_and_another_connection_made(
    database_url: str,
) -> None:
    database = Database(database_url, pool_size=1, statement_timeout_ms=30_000)

    def hang(connection: Connection) -> None:
        driven = raw(connection)
        assert driven.answer_s == 35.0
        assert driven.prepare_threshold is None  # or poolers older than pgbouncer 1.21 would lose statements
        with hanging(driven.info.backend_pid):
            driven.answer_s = 0.1
            ask(connection)

    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"):
        database.run(hang)

    database.run(ask)
    database.dispose()


def test_a_server_that_hangs_is_noticed_by_a_shorter_wait_before_a_transaction(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "PING_AFTER_S", 0.0)
    database = Database(database_url, pool_size=1)
    used = database.run(raw)
    assert used.answer_s == ANSWER_GRACE_S

    with hanging(used.info.backend_pid):
        used.answer_s = 0.1
        assert database.run(raw) is not used

    assert used.closed
    database.dispose()


def test_a_host_that_hangs_is_passed_over_for_one_that_takes_writes(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        one_host = changed(database_url, drivername="postgresql")
        url = one_host.replace("@", f"@127.0.0.1:{silent.getsockname()[1]},")
        database = Database(url, pool_size=1)

        database.run(ask)

        database.dispose()


def test_a_connection_that_died_while_it_was_idle_is_replaced_unseen(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "PING_AFTER_S", 0.0)
    database = Database(database_url, pool_size=1)

    def pid(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    first = database.run(pid)
    ledger.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=first)

    assert database.run(pid) != first
    database.dispose()


def test_a_transaction_begins_with_its_settings_in_one_trip_whatever_the_default(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "PING_AFTER_S", float("inf"))
    serializable = {"options": "-c default_transaction_isolation=serializable"}
    database = Database(changed(database_url, query=serializable), lock_timeout_ms=1000)
    isolation = text("SHOW transaction_isolation")
    first = database.run(lambda connection: connection.execute(isolation).scalar_one())
    trips: list[object] = []
    wait = BoundedConnection.wait

    def counted(self: BoundedConnection, gen: Generator[Any, Any, Any], *rest: Any, **options: Any) -> Any:
        return wait(self, noted(gen), *rest, **options)

    def noted(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Note a trip if anything is waited for: where nothing is to be rolled back, nothing is sent."""
        try:
            wanted = next(gen)
            trips.append(None)
            while True:
                wanted = gen.send((yield wanted))
        except StopIteration as end:
            return end.value

    monkeypatch.setattr(BoundedConnection, "wait", counted)
    database.run(lambda connection: connection.execute(isolation).scalar_one())
    for_a_transaction = len(trips)
    database.look(isolation)

    assert (first, for_a_transaction, len(trips) - for_a_transaction) == ("read committed", 3, 1)
    database.dispose()


def test_a_statement_that_runs_too_long_is_ended_and_postgres_not_called_away(database_url: str) -> None:
    database = Database(database_url, statement_timeout_ms=50)

    with pytest.raises(DBAPIError, match="statement timeout"), database.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    database.dispose()


def test_a_lock_is_waited_for_no_longer_than_bounded(ledger: Ledger, database_url: str) -> None:
    database = Database(database_url, lock_timeout_ms=50)

    with ledger.database.transaction() as connection:
        connection.execute(text("LOCK TABLE tenants"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            database.run(lambda c: c.execute(text("SELECT * FROM tenants")).all())
    database.dispose()


def test_a_transaction_of_a_process_that_stands_still_is_ended(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.database.MAX_HOLD_MS", 100)
    database = Database(database_url, lock_timeout_ms=50)

    def stands_still(connection: Connection) -> None:
        connection.execute(text("LOCK TABLE tenants"))
        # It gets the lock while the other still believes that it holds it.
        ledger.sql("LOCK TABLE tenants")
        connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable, match="idle-in-transaction"):
        database.run(stands_still)
    database.run(ask)
    database.dispose()


def takes_no_answer(raw: Any) -> None:
    """Ask for more than the sockets hold."""
    raw.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
    raw.pgconn.flush()


def sends_half(raw: Any) -> None:
    """Send a statement and the beginning of its parameters."""
    parse = b"\0SELECT $1\0\0\0"
    os.write(raw.fileno(), b"P" + (4 + len(parse)).to_bytes(4) + parse + b"B" + (1000).to_bytes(4))


@pytest.mark.parametrize(
    ("stops", "statement_timeout_ms"), [(takes_no_answer, 0), (sends_half, 200)], ids=["reading", "writing"]
)
def test_a_process_that_is_stopped_in_the_middle_of_a_message_holds_no_lock(
    ledger: Ledger,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    stops: Callable[[Any], None],
    statement_timeout_ms: int,
) -> None:
    monkeypatch.setattr("db.database.MAX_HOLD_MS", 500)
    database = Database(
        database_url, pool_size=1, lock_timeout_ms=500, statement_timeout_ms=statement_timeout_ms
    )
    came_free = []

    def lock(connection: Connection) -> None:
        connection.execute(text("LOCK TABLE tenants"))
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        stops(raw)
        # It gets the lock although the other is neither idle nor at the end of its statement's time.
        ledger.sql("LOCK TABLE tenants")
        came_free.append(True)
        raw.close()
        connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        database.run(lock)
    assert came_free
    database.dispose()


@pytest.mark.parametrize("sqlstate", ["25006", "26000", "0A000"])
def test_what_the_connection_is_to_blame_for_is_tried_again_on_a_new_one(
    database_url: str, sqlstate: str
) -> None:
    database = Database(database_url, pool_size=1)
    refuse = text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$")

    def pid(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    first = database.run(pid)
    assert database.run(pid) == first
    with pytest.raises(DBAPIError):
        database.run(lambda c: c.execute(refuse))

    assert database.run(pid) != first
    database.dispose()

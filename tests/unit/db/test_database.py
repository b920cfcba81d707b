"""A URL is understood or refused at once, and its password is never shown."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

import db.connections as connections_module
from db import Database, DatabaseSettings, SecretSettings
from db.connections import BoundedConnection
from db.database import parse_url
from db.errors import InvalidDatabaseUrl


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_every_way_to_write_postgres_names_the_one_driver(scheme: str) -> None:
    database = Database(f"{scheme}://me:secret@example.com:5433/yard")

    assert database.safe_url == "postgresql+psycopg://me:***@example.com:5433/yard"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("postgresql://me:a%2Fb@h1:5433,h2/yard", {"host": "h1,h2", "port": "5433,5432"}),
        ("postgres://[::1]:5433,h2:1/yard", {"host": "::1,h2", "port": "5433,1"}),
        ("postgresql+psycopg://me@/yard?host=h1:5433&host=h2:1", {"host": "h1,h2", "port": "5433,1"}),
        ("postgresql://me@/yard?host=h1,h2", {"host": "h1,h2"}),
    ],
)
@pytest.mark.parametrize("attributes", ["read-write", "any"])
def test_several_hosts_are_tried_for_the_one_that_takes_writes(
    url: str, options: dict[str, str], attributes: str
) -> None:
    if attributes != "read-write":
        url += f"{'&' if '?' in url else '?'}target_session_attrs={attributes}"

    _, told = PGDialect_psycopg().create_connect_args(parse_url(url))

    asked = {"dbname": "yard", "target_session_attrs": attributes, **options}
    assert {name: told[name] for name in asked} == asked


@pytest.mark.parametrize(
    "url",
    [
        "", "not a url", "mysql://me:secret@host/db", "postgresql://h:port/db", "postgresql://me:secret",
        "postgresql://me:secret@h:54x2/db", "postgresql://me:secret@h/db?pool_size=5",
        "postgresql://me:secret@h1:54x2,h2/db", "postgresql://me:secret@h1,,h2/db",
    ],
)  # fmt: skip
def test_any_other_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InvalidDatabaseUrl, match="LORAYARD_DATABASE_URL") as raised:
        Database(url)

    assert "secret" not in str(raised.value)


def test_a_password_among_the_options_is_not_shown_either() -> None:
    url = "postgresql://me@h/db?password=secret&sslpassword=secret&sslmode=require"

    assert Database(url).safe_url == (
        "postgresql+psycopg://me@h/db?password=***&sslmode=require&sslpassword=***"
    )


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAYARD_DATABASE_URL", "postgresql://me:secret@host/db")
    monkeypatch.setenv("LORAYARD_SECRET_KEY", "new, old ,")

    settings = DatabaseSettings()

    assert Database.from_settings(settings).safe_url == "postgresql+psycopg://me:***@host/db"
    assert "secret" not in repr(settings)
    assert [key.get_secret_value() for key in SecretSettings().secret_key] == ["new", "old"]


def test_a_server_is_not_given_up_for_time_in_which_this_process_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, limit_s, connection = 0.0, 5.0, object.__new__(BoundedConnection)
    monkeypatch.setattr(connections_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(BoundedConnection, "close", lambda _: None)
    monkeypatch.setattr(psycopg.Connection, "__del__", lambda _: None)

    def answer() -> Generator[int, int, str]:
        while not (yield 1):
            pass
        return "late"

    waiting = connection._within(answer(), limit_s)
    assert next(waiting) == 1
    for _ in range(3):
        now += 100.0
        assert waiting.send(0) == 1
    with pytest.raises(StopIteration, match="late"):
        waiting.send(1)

    hanging = connection._within(answer(), limit_s)
    assert next(hanging) == 1
    for _ in range(49):
        now += 0.1
        hanging.send(0)
    now += 0.2
    with pytest.raises(psycopg.OperationalError, match="no answer within 5 s"):
        hanging.send(0)

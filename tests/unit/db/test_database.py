"""A URL is understood or refused at once, and its password is never shown."""

from __future__ import annotations

import pytest

from db import Database, DatabaseSettings, SecretSettings
from db.errors import InvalidDatabaseUrl


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_every_way_to_write_postgres_names_the_one_driver(scheme: str) -> None:
    database = Database(f"{scheme}://me:secret@example.com:5433/yard")

    assert database.safe_url == "postgresql+psycopg://me:***@example.com:5433/yard"


@pytest.mark.parametrize(
    "url",
    [
        "", "not a url", "mysql://me:secret@host/db", "postgresql://h:port/db", "postgresql://me:secret",
        "postgresql://me:secret@h:54x2/db", "postgresql://me:secret@h/db?pool_size=5",
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

"""Brings the schema up to date: one transaction, under a lock, so that any number may run at once."""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from db.database import Database
from db.errors import DatabaseError, SchemaLocked
from db.settings import DatabaseSettings
from lorayard.process.environment import readable_settings

ADVISORY_KEY: Final = 0x6C6F72617961  # "loraya"
OTHER_MIGRATOR_TIMEOUT_S: Final = 120
TABLE_LOCK_TIMEOUT_S: Final = 10
"""Waiting longer for a table would queue every other statement on it behind us."""

LOCK_NOT_AVAILABLE: Final = "55P03"


class Migration(NamedTuple):
    """What an upgrade did: the revision before (None: an empty database) and after."""

    before: str | None
    after: str

    def __str__(self) -> str:
        if self.before == self.after:
            return f"schema is up to date at {self.after}"
        return f"schema upgraded from {self.before or 'nothing'} to {self.after}"


def upgrade(url: str) -> Migration:
    """Bring the schema to the newest revision; raises DatabaseUnavailable or SchemaLocked."""
    database = Database(url, pool_size=1, statement_timeout_ms=0, name="lorayard-migrate")
    try:
        with database.transaction() as connection:
            return _upgrade(connection)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise SchemaLocked(
            f"the schema of {database.safe_url} is locked by another session: "
            "let long transactions end, then migrate again"
        ) from error
    finally:
        database.dispose()


def _upgrade(connection: Connection) -> Migration:
    _wait_at_most(connection, OTHER_MIGRATOR_TIMEOUT_S)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_KEY})
    _wait_at_most(connection, TABLE_LOCK_TIMEOUT_S)
    before = current_revision(connection)
    command.upgrade(alembic_config(connection), "head")
    after = current_revision(connection)
    assert after is not None, "there is at least one migration"
    return Migration(before, after)


def current_revision(connection: Connection) -> str | None:
    """Read which revision the schema is at; None for an empty database."""
    return MigrationContext.configure(connection).get_current_revision()


def alembic_config(connection: Connection) -> Config:
    """Configure alembic without a file: where the scripts are, and the connection to use."""
    config = Config()
    config.set_main_option("script_location", "db:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _wait_at_most(connection: Connection, seconds: int) -> None:
    connection.execute(
        text("SELECT set_config('lock_timeout', :value, true)"), {"value": f"{seconds * 1000}ms"}
    )


def main() -> int:
    """Migrate the database that the environment names, and say what was done."""
    with readable_settings("db.migrate"):
        settings = DatabaseSettings()
    try:
        done = upgrade(settings.database_url.get_secret_value())
    except DatabaseError as error:
        print(f"db.migrate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"db.migrate: {done}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

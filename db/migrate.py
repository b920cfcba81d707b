"""Brings the schema up to date: one transaction, under a lock, so that any number may run at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from db.database import Database
from db.errors import DatabaseError, DowngradeRefused, SchemaLocked, SchemaRefused, UnknownSchema
from db.judge import reason_of, sqlstate_of
from db.server_check import refusal_of
from db.settings import DatabaseSettings
from lorayard.process.environment import readable_settings

ADVISORY_KEY: Final = 0x6C6F72617961  # "loraya"
OTHER_MIGRATOR_TIMEOUT_S: Final = 120
TABLE_LOCK_TIMEOUT_S: Final = 10
"""Waiting longer for a table would queue every other statement on it behind us."""

FOREIGN_TABLES: Final = ("42P07", "42710")
"""A table, or a type, is there already."""

NO_RIGHT: Final = "42501"

LOCK_TROUBLE: Final = ("55P03", "40P01")
"""Not available in time, or a deadlock with whoever locks in another order."""


class Migration(NamedTuple):
    """What was done: the revision before (None: an empty database) and after."""

    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before == self.after:
            return f"schema is up to date at {self.after}"
        way = "upgraded" if (self.before or "") < (self.after or "") else "downgraded"
        return f"schema {way} from {self.before or 'nothing'} to {self.after or 'nothing'}"


def upgrade(url: str) -> Migration:
    """Bring the schema to the newest revision; raises DatabaseUnavailable or another DatabaseError."""
    return _migrate(url, lambda config: command.upgrade(config, "head"))


def downgrade(url: str, revision: str) -> Migration:
    """Take the schema back to an earlier revision; raises DowngradeRefused too, and then changes nothing."""
    try:
        return _migrate(url, lambda config: command.downgrade(config, revision))
    except CommandError as error:
        raise DowngradeRefused(f"the schema cannot go back to {revision!r}: {error}") from error


def _migrate(url: str, walk: Callable[[Config], None]) -> Migration:
    database = Database(url, pool_size=1, statement_timeout_ms=0, name="lorayard-migrate")
    try:
        with database.transaction() as connection:
            return _walk_alone(connection, walk)
    except DBAPIError as error:
        state = sqlstate_of(error)
        if state in FOREIGN_TABLES:
            raise UnknownSchema(
                f"the database of {database.safe_url} has something of the same name that is not Lorayard's "
                f"({reason_of(error)}): give Lorayard a database of its own"
            ) from error
        if state == NO_RIGHT:
            raise SchemaRefused(
                f"the schema of {database.safe_url} may not be changed ({reason_of(error)}): grant the user "
                "CREATE on its schema, or migrate as the owner"
            ) from error
        if state not in LOCK_TROUBLE:
            raise
        raise SchemaLocked(
            f"the schema of {database.safe_url} is locked by another session: "
            "let long transactions end, then migrate again"
        ) from error
    finally:
        database.dispose()


def _walk_alone(connection: Connection, walk: Callable[[Config], None]) -> Migration:
    _wait_at_most(connection, OTHER_MIGRATOR_TIMEOUT_S)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_KEY})
    _wait_at_most(connection, TABLE_LOCK_TIMEOUT_S)
    if (refusal := refusal_of(connection)) is not None:
        raise UnknownSchema(f"the database cannot be used: {refusal}")
    config, before = alembic_config(connection), current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if before is not None and before not in known:
        raise UnknownSchema(
            f"the database is at schema revision {before!r}, which this release does not know "
            f"(it knows {min(known)} to {max(known)}): migrate with the later release that made it"
        )
    walk(config)
    return Migration(before, current_revision(connection))


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Migrate the database that the environment names, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m db.migrate", description=main.__doc__)
    parser.add_argument(
        "--down-to",
        metavar="REVISION",
        help="take the schema back to this revision, for an earlier release (docs/upgrading.md)",
    )
    down_to: str | None = parser.parse_args(arguments).down_to
    with readable_settings("db.migrate"):
        settings = DatabaseSettings()
    url = (settings.database_direct_url or settings.database_url).get_secret_value()
    try:
        done = upgrade(url) if down_to is None else downgrade(url, down_to)
    except DatabaseError as error:
        print(f"db.migrate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"db.migrate: {done}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

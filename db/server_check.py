"""Says why a Postgres cannot hold the ledger: too old, or its schema is another application's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import structlog
from sqlalchemy import Connection, text

from db.database import MAX_HOLD_MS, Database
from db.judge import explain, is_ledger_outage
from lorayard.process.environment import refuse

MIN_VERSION: Final = 14
"""The oldest that its makers still maintain when this was written."""

LOOK_TIMEOUT_MS: Final = 5000

_OUR_REVISION: Final = re.compile(r"\d{4}")

logger = structlog.get_logger(__name__)


def refusal_of(connection: Connection) -> str | None:
    """Tell why the server or its schema cannot be used, with the remedy; None if they can.

    A revision of an earlier or later release can: whoever migrates brings it to where it belongs.
    """
    version = int(connection.execute(text("SELECT current_setting('server_version_num')")).scalar_one())
    revisions: list[str | None] = []
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is not None:
        # As JSON: whatever another application's table looks like, this can be read.
        found = connection.execute(
            text("SELECT to_jsonb(v) ->> 'version_num' FROM alembic_version v LIMIT 2")
        )
        revisions = list(found.scalars())
    return judge(version, revisions)


def judge(version: int, revisions: Sequence[str | None]) -> str | None:
    """Judge `server_version_num` and the rows of `alembic_version`."""
    if version // 10_000 < MIN_VERSION:
        return f"it is Postgres {version // 10_000}: upgrade it to {MIN_VERSION} or newer"
    if len(revisions) > 1 or any(one is None or not _OUR_REVISION.fullmatch(one) for one in revisions):
        named = ", ".join(map(repr, revisions))
        return f"its alembic_version ({named}) is another application's: give Lorayard a database of its own"
    return None


def require_usable_ledger(program: str, url: str) -> None:
    """End the process with one clear line if the server or its schema cannot be used.

    A ledger that does not answer is ridden out like any outage.
    """
    database = look_database(url, program)
    try:
        refusal = database.run(refusal_of)
    except Exception as error:
        if not is_ledger_outage(error):
            raise
        logger.warning("ledger.not_looked_at", error=explain(error))
        return
    finally:
        database.dispose()
    if refusal is not None:
        refuse(program, f"the Postgres at {database.safe_url} cannot be used: {refusal}")


def look_database(url: str, program: str) -> Database:
    """Make the one connection for what a service asks the ledger before it begins."""
    return Database(
        url, pool_size=1, statement_timeout_ms=LOOK_TIMEOUT_MS, lock_timeout_ms=MAX_HOLD_MS, name=program
    )

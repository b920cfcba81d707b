"""Tells a job that Postgres will never take from a Postgres that is in trouble."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError, StatementError

CULPRIT_CLASSES: Final = frozenset({"22", "23", "54"})
"""SQLSTATE classes of bad data, broken constraints and limits of the program: another try cannot help."""


def is_refusal(error: Exception) -> bool:
    """Whether the data of a statement is to blame for its failure."""
    if isinstance(error, DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        # Without a state, the driver itself could not render a value.
        return sqlstate[:2] in CULPRIT_CLASSES if sqlstate else not error.connection_invalidated
    return isinstance(error, (StatementError, ValueError, TypeError))

"""Judges every error of the ledger: whose fault it is, and whether its connection can be used again."""

from __future__ import annotations

from enum import Enum
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from db.errors import DatabaseUnavailable


class Fault(Enum):
    """Whose fault a failed transaction is, which decides what may be done about it."""

    ROW = "row"
    """A value that Postgres will never take: another try cannot help, and other rows are not to blame."""
    REPEAT = "repeat"
    """The row is there already: read it back."""
    SCHEMA = "schema"
    """Tables or rights are not those of this release: retried, but no new work until it goes through."""
    SERVER = "server"
    """All else: an outage, a lock, a timeout, a conflict. Retried; it says nothing about the rows."""


WRONG_SCHEMA: Final = (
    "the ledger's schema is not this release's: run `python -m db.migrate` of this release, "
    "or start the release that the schema was migrated for"
)

_ROW_CLASSES: Final = frozenset({"22", "54"})
"""Data that does not fit, and limits of the program."""

_NOT_NULL: Final = "23502"
_UNIQUE: Final = "23505"
_CHECK: Final = "23514"

# Of prepared statements that this connection has, had or never heard of: no fault of rows or schema.
_PREPARED_STATEMENTS: Final = frozenset({"26000", "0A000", "42P05"})

_STALE_STATES: Final = frozenset({"25006", "25P03", "25P04", *_PREPARED_STATEMENTS})
"""Read-only, ended while idle in a transaction or for its length, prepared statements gone or doubled."""

_STALE_CLASSES: Final = ("08", "57P")
"""The connection is lost; the server stops, starts or has crashed."""

_CLIENT_SIDE: Final = (ValueError, TypeError, OverflowError)
"""What rendering a value raises before anything is sent (UnicodeError is a ValueError)."""


def fault_of(error: BaseException) -> Fault:
    """Tell whose fault a failed transaction is; what nobody knows is the server's."""
    if isinstance(error, DatabaseUnavailable):
        return Fault.SERVER
    if isinstance(error, DBAPIError):
        state = sqlstate_of(error)
        return _fault_of_client(error) if state is None else _fault_of_state(error, state)
    return Fault.ROW if isinstance(error, (StatementError, *_CLIENT_SIDE)) else Fault.SERVER


def is_ledger_outage(error: BaseException) -> bool:
    """Whether the ledger is away, out of order, or of another release: ridden out, no row is to blame."""
    is_of_ledger = isinstance(error, (DatabaseUnavailable, SQLAlchemyError))
    return is_of_ledger and fault_of(error) in (Fault.SERVER, Fault.SCHEMA)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that Postgres gave; None if it gave none."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def needs_new_connection(error: BaseException) -> bool:
    """Whether another try on the same connection would most likely meet the same error."""
    state = sqlstate_of(error)
    return state is not None and (state in _STALE_STATES or state.startswith(_STALE_CLASSES))


def reason_of(error: BaseException) -> str:
    """Tell an error in one line without the statement's values, which are the users' own."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    state = sqlstate_of(error)
    name = f"{type(cause).__name__} {state}" if state else type(cause).__name__
    return f"{name}: {lines[0]}" if lines else name


def explain(error: BaseException) -> str:
    """Tell an error in one line for a log, with the remedy if the schema is to blame."""
    reason = reason_of(error)
    return f"{reason}; {WRONG_SCHEMA}" if fault_of(error) is Fault.SCHEMA else reason


def _fault_of_client(error: DBAPIError) -> Fault:
    """Judge an error without a SQLSTATE: of the driver, or of a connection that went away."""
    if error.connection_invalidated or not isinstance(error.orig, psycopg.DataError):
        return Fault.SERVER
    return Fault.ROW


def _fault_of_state(error: DBAPIError, state: str) -> Fault:
    if state in _PREPARED_STATEMENTS:
        return Fault.SERVER
    if state == _UNIQUE:
        return Fault.REPEAT
    if state[:2] == "42":
        return Fault.SCHEMA
    if state == _NOT_NULL:
        return Fault.SCHEMA if _is_of_a_later_column(error) else Fault.ROW
    if state[:2] in _ROW_CLASSES:
        return Fault.ROW
    return Fault.ROW if state == _CHECK and _constraint_of(error) else Fault.SERVER


def _is_of_a_later_column(error: DBAPIError) -> bool:
    """Whether a null is missing in a column that this release has never heard of, and never fills."""
    if not isinstance(error.orig, psycopg.Error):
        return False
    # Nothing else at run time asks for the models, which bring SQLAlchemy's ORM: 12 MB in each process.
    from db.models import Table

    told = error.orig.diag
    table = Table.metadata.tables.get(told.table_name or "")
    return table is not None and told.column_name is not None and told.column_name not in table.columns


def _constraint_of(error: DBAPIError) -> str | None:
    return error.orig.diag.constraint_name if isinstance(error.orig, psycopg.Error) else None

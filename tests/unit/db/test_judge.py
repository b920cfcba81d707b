"""Whose fault a failed transaction is."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.errors import lookup
from sqlalchemy.exc import DBAPIError, OperationalError, StatementError

from db.errors import DatabaseUnavailable, Deposed
from db.judge import Fault, explain, fault_of, needs_new_connection, reason_of

ROW, REPEAT, SCHEMA, SERVER = Fault.ROW, Fault.REPEAT, Fault.SCHEMA, Fault.SERVER


class CheckOfConstraint(psycopg.errors.CheckViolation):
    """A violated check as Postgres reports it: with the constraint's name."""

    class diag:
        constraint_name = "ck_jobs_state"


def database_error(kind: type[BaseException], message: str = "no") -> DBAPIError:
    return DBAPIError("INSERT INTO job_outputs", {"output": "private"}, kind(message))


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        ("22001", ROW),  # too long
        ("22003", ROW),  # number out of range
        ("22021", ROW),  # a character that the encoding lacks
        ("22P05", ROW),  # untranslatable character
        ("23502", ROW),  # a null that is not allowed
        ("54000", ROW),  # a limit of the program
        ("54001", ROW),  # too complex
        ("23505", REPEAT),
        ("42P01", SCHEMA),  # no such table
        ("42703", SCHEMA),  # no such column
        ("42501", SCHEMA),  # no right
        ("23503", SERVER),  # a foreign key: the other row may yet come
        ("23514", SERVER),  # a check without a name is none of ours
        ("08006", SERVER),
        ("0A000", SERVER),  # cached plan must not change result type
        ("26000", SERVER),  # prepared statement does not exist
        ("42P05", SERVER),  # prepared statement exists already
        ("25006", SERVER),  # read-only
        ("25P03", SERVER),  # ended while idle in a transaction
        ("28P01", SERVER),
        ("40001", SERVER),
        ("40P01", SERVER),
        ("53100", SERVER),  # disk full
        ("53300", SERVER),  # too many connections
        ("55P03", SERVER),  # lock timeout
        ("57014", SERVER),  # statement timeout
        ("57P01", SERVER),
        ("57P03", SERVER),
        ("58030", SERVER),  # I/O
        ("XX000", SERVER),
    ],
)
def test_a_state_names_its_culprit(sqlstate: str, fault: Fault) -> None:
    assert fault_of(database_error(lookup(sqlstate))) is fault


def test_a_check_with_a_name_is_the_rows_own_fault() -> None:
    assert fault_of(database_error(CheckOfConstraint)) is ROW


@pytest.mark.parametrize(
    "error",
    [
        database_error(psycopg.DataError, "PostgreSQL text fields cannot contain NUL (0x00) bytes"),
        StatementError("no", "SELECT 1", {}, ValueError("no")),
        UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
        ValueError("no"),
        TypeError("no"),
        OverflowError("no"),
    ],
)
def test_what_cannot_even_be_sent_is_the_rows_own_fault(error: Exception) -> None:
    assert fault_of(error) is ROW


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("SELECT 1", {}, psycopg.OperationalError("gone"), connection_invalidated=True),
        database_error(psycopg.InterfaceError, "the connection is closed"),
        database_error(psycopg.ProgrammingError, "the last operation didn't produce a result"),
        DatabaseUnavailable("gone"),
        Deposed("over"),
        OSError("disk"),
        RuntimeError("nobody knows"),
    ],
)
def test_what_nobody_knows_is_blamed_on_no_row(error: Exception) -> None:
    assert fault_of(error) is SERVER


@pytest.mark.parametrize(
    ("sqlstate", "needs"),
    [
        ("25006", True),
        ("25P03", True),
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("08006", True),
        ("26000", True),
        ("0A000", True),
        ("57014", False),
        ("55P03", False),
        ("40001", False),
        ("22003", False),
        ("42P01", False),
    ],
)
def test_a_connection_that_would_fail_again_is_not_used_again(sqlstate: str, *, needs: bool) -> None:
    assert needs_new_connection(database_error(lookup(sqlstate))) is needs


def test_a_reason_has_the_state_and_none_of_the_values() -> None:
    error = database_error(lookup("22003"), "integer out of range\nLINE 1: ...")

    assert reason_of(error) == "NumericValueOutOfRange 22003: integer out of range"
    assert "private" in str(error)


def test_a_wrong_schema_is_explained_with_its_remedy() -> None:
    assert "python -m db.migrate" in explain(database_error(lookup("42703")))
    assert "migrate" not in explain(database_error(lookup("55P03")))

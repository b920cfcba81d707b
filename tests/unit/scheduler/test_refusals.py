"""Whose fault a failed statement is."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from scheduler.refusals import is_refusal


def database_error(kind: type[psycopg.Error]) -> DBAPIError:
    return DBAPIError("SELECT 1", {}, kind("no"))


@pytest.mark.parametrize(
    "kind",
    [
        psycopg.errors.UntranslatableCharacter,
        psycopg.errors.CheckViolation,
        psycopg.errors.ProgramLimitExceeded,
    ],
)
def test_bad_data_is_the_jobs_own_fault(kind: type[psycopg.Error]) -> None:
    assert is_refusal(database_error(kind))


@pytest.mark.parametrize(
    "kind",
    [psycopg.errors.QueryCanceled, psycopg.errors.UndefinedTable, psycopg.errors.DiskFull],
)
def test_a_ledger_in_trouble_is_not(kind: type[psycopg.Error]) -> None:
    assert not is_refusal(database_error(kind))


def test_what_the_driver_cannot_render_is_the_jobs_own_fault() -> None:
    assert is_refusal(ValueError("surrogates not allowed"))
    assert not is_refusal(
        OperationalError("SELECT 1", {}, psycopg.OperationalError(), connection_invalidated=True)
    )
    assert not is_refusal(OSError("disk"))

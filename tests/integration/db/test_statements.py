"""Every statement of the repositories names only tables and columns that a migrated ledger has.

That a migrated ledger has what `db.models` say is held by `test_migrate.py`.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import TextClause

import db.repositories
from lorayard.local import plain_url

BIND = re.compile(r"(?<![:\w]):(\w+)")
MODULES = [
    importlib.import_module(f"{db.repositories.__name__}.{module.name}")
    for module in pkgutil.iter_modules(db.repositories.__path__)
]


def statements() -> Iterator[tuple[str, str]]:
    """All that is written as `text()`, by module and name."""
    for module in MODULES:
        for name, value in vars(module).items():
            some = value if isinstance(value, dict) else {"": value}
            for key, statement in some.items():
                if isinstance(statement, TextClause):
                    yield f"{module.__name__.rpartition('.')[2]}{name}{key and f'[{key}]'}", statement.text


def misnamed(url: str, found: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Have Postgres read and plan statements, with NULL for every value; say what it had against which."""
    refused = {}
    with psycopg.connect(plain_url(url)) as connection:
        for name, statement in found:
            how = "" if statement.startswith("LOCK") else "EXPLAIN "
            try:
                connection.execute(f"{how}{BIND.sub('NULL', statement)}".encode())
            except psycopg.Error as error:
                refused[name] = type(error).__name__
            connection.rollback()
    return refused


def test_postgres_knows_every_name_of_every_statement(database_url: str) -> None:
    found = dict(statements())

    assert len(found) >= 70
    assert misnamed(database_url, iter(found.items())) == {}


def test_a_name_that_is_not_there_is_found(database_url: str) -> None:
    wrong = {
        "table": "SELECT job_id FROM job WHERE pool = :pool",
        "column": "UPDATE jobs SET state = :state WHERE polo = :pool",
        "of an alias": "SELECT j.job_id FROM jobs j JOIN job_inputs i ON i.job = j.job_id",
    }

    assert misnamed(database_url, iter(wrong.items())) == {
        "table": "UndefinedTable",
        "column": "UndefinedColumn",
        "of an alias": "UndefinedColumn",
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_statement_hides_inside_a_function(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]

    hidden = [
        call.lineno
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "text"
    ]

    assert hidden == []

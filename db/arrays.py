"""Writes Python values as Postgres array literals: over a list psycopg takes several times as long.

A statement casts what it is given (`CAST(:ids AS uuid[])`), so that the literal needs no type of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID


def array_literal(values: Iterable[UUID | str | float | bool | None]) -> str:
    """Write one array of one dimension; what Postgres refuses of a value, it refuses as psycopg would."""
    return f"{{{','.join([_element(value) for value in values])}}}"


def _element(value: UUID | str | float | bool | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        if '"' in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{value}"'
    if isinstance(value, UUID):
        return f"{value.int:032x}"
    return str(value)

"""How verbs show rows: a table for people, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer

# Without a terminal rich assumes 80 columns and would cut ids in two.
_PIPE_WIDTH = 200


def show_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool, none: str) -> None:
    """Print the named columns of rows; `none` says in words that there are none."""
    columns, rows = list(columns), list(rows)
    if as_json:
        for row in rows:
            typer.echo(json.dumps({column: row[column] for column in columns}, default=str))
        return
    if not rows:
        typer.echo(none)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(row[column]), overflow="fold") for column in columns))
    console = Console()
    console = console if console.is_terminal else Console(width=_PIPE_WIDTH)
    console.print(table)


def counted(number: int, noun: str) -> str:
    """Say how many there are of what `noun` calls one of: "1 module", "2 modules"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Escape what a terminal would obey, such as a stranger's escape sequences; line ends stay."""
    kept = (
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text
    )
    return "".join(kept)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return printable("; ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))

"""`lorayard usage`: who used what, from the ledger."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorayard.cli.duration import parse_duration
from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows

if TYPE_CHECKING:
    from db import Database

_BASE = "(base)"
_COUNTERS = (
    "jobs", "prompt_tokens", "completion_tokens", "device_ms", "queue_ms", "loads", "load_ms", "hits",
    "evictions", "failures", "wasted_device_ms",
)  # fmt: skip


class By(StrEnum):
    """What usage is summed over."""

    ADAPTER = "adapter"
    TENANT = "tenant"


def usage(
    by: Annotated[By, typer.Option(help="Sum per adapter or per tenant.")] = By.ADAPTER,
    since: Annotated[str, typer.Option(help="How far back, e.g. 90m, 24h, 7d; whole hours count.")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Show what adapters or tenants used."""
    since_s = parse_duration(since)
    with open_ledger() as database:
        rows = usage_rows(database, by, since_s)
    show_rows(rows, (by.value, *_COUNTERS), as_json=as_json, none=f"nothing was used in the last {since}")


def usage_rows(database: Database, by: By, since_s: float) -> list[dict[str, Any]]:
    """Sum usage back to `since_s` seconds ago; the base model counts as an adapter."""
    from db.repositories.usage import UsageRepository

    report = database.run(lambda connection: UsageRepository(connection).report(by.value, since_s))
    rows = [asdict(row) for row in report]
    return [{**row, by.value: row[by.value] or _BASE} for row in rows]

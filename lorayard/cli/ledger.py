"""The ledger as verbs open it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorayard.cli.settings import LedgerSettings

if TYPE_CHECKING:
    from db import Database


@contextmanager
def open_ledger(settings: LedgerSettings | None = None) -> Iterator[Database]:
    """Open the ledger that the environment names, for the time of one verb."""
    settings = settings or LedgerSettings()
    from db import Database

    database = Database(settings.database_url.get_secret_value(), pool_size=1, name="lorayard-cli")
    try:
        yield database
    finally:
        database.dispose()

"""Gives the tests of the ledger a fresh one each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.db.ledger import Ledger


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    """A migrated, empty ledger with a leader."""
    ledger = Ledger(database_url)
    yield ledger
    ledger.database.dispose()

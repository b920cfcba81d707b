"""A pool of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scheduler.yard import Yard


@pytest.fixture
def yard(redis_url: str, database_url: str, tmp_path: Path) -> Iterator[Yard]:
    """A pool without a scheduler."""
    pool = Yard(redis_url, database_url, tmp_path)
    yield pool
    pool.close()

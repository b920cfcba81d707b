"""A pool of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.trips import Trips


@pytest.fixture
def rig(redis_url: str, database_url: str, tmp_path: Path) -> Iterator[PoolRig]:
    """A pool without a scheduler."""
    pool = PoolRig(redis_url, database_url, tmp_path)
    yield pool
    pool.close()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Trips:
    """Put faults into the leader's parts."""
    return Trips(monkeypatch)

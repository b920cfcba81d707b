"""A Redis with one registered pool, and a client on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lorayard.client import Client
from tests.integration.client.tiny_leader import register_pool

if TYPE_CHECKING:
    from lorayard.local import RedisServer


@pytest.fixture
def pool_url(redis_url: str) -> str:
    """A Redis on which one pool with the adapter `upper` is registered."""
    register_pool(redis_url, adapters=("upper",))
    return redis_url


@pytest.fixture
def client(pool_url: str) -> Iterator[Client]:
    """A client of that pool."""
    with Client(pool_url) as client:
        yield client


@pytest.fixture
def own_redis(new_state_dir: Callable[[], Path]) -> Iterator[RedisServer]:
    """A Redis of the test's own, to stop, starve and restart."""
    from lorayard.local import Stack, StackConfig

    with Stack(StackConfig(state_dir=new_state_dir(), parts=frozenset({"redis"}))) as stack:
        yield stack.redis


@pytest.fixture
def never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients rely on replies alone: no silence of this test is long enough to ask about."""
    monkeypatch.setattr("lorayard.client.tracker.FIRST_SILENCE_S", 600.0)

"""Lets the examples that run inside the test process share one loader process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.workers.engine.loader_pool import shared_loaders


@pytest.fixture(scope="package", autouse=True)
def loader_processes() -> Iterator[None]:
    """The loader processes of all examples, one engine after the other."""
    with shared_loaders():
        yield

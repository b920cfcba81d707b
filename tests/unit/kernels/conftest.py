"""Runs a test once at every level of the CPU's kernels that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.cpu.library import LEVELS, Level, available_levels, use_level


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """The level in force during the test."""
    if request.param not in available_levels():
        pytest.skip(f"this processor or this build has no {request.param} kernels")
    with use_level(request.param):
        yield request.param

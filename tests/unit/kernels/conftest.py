"""Runs a test once at every level of the CPU's kernels that this processor has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import registry
from kernels.cpu.library import LEVELS, Level, available_levels

Resolve = Callable[[str, torch.dtype], Any]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    """The level that the test is about."""
    if request.param not in available_levels():
        pytest.skip(f"this processor or this build has no {request.param} kernels")
    return request.param


@pytest.fixture
def resolve(level: Level) -> Resolve:
    """Return an op's implementation for a dtype at the level."""
    return lambda op, dtype: registry.resolve(op, "cpu", dtype, level)

"""Runs a test once at every level of the CPU's kernels, avx512_bf16 emulated where the processor lacks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kernels import registry
from kernels.cpu.library import LEVELS, Level
from tests.emulated.library import at_level

Resolve = Callable[[str, torch.dtype], Any]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """The level that the test is about."""
    with at_level(request.param) as level:
        yield level


@pytest.fixture
def resolve(level: Level) -> Resolve:
    """Return an op's implementation for a dtype at the level."""
    return lambda op, dtype: registry.resolve(op, "cpu", dtype, level)

"""Waits for what another process will do, with a deadline instead of a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], timeout_s: float = 60.0, what: str = "the condition") -> T:
    """Return the first true value of `condition`; fail the test if there is none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s; last seen: {value!r}")
        time.sleep(0.02)
    return value

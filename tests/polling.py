"""Waits for what another process will do, with a deadline instead of a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.1
_LONGEST_REST_S = 0.5
"""After a look that took as long: whoever is waited for needs the processor more than the next look."""


def eventually(condition: Callable[[], T | None], timeout_s: float = 60.0, what: str = "the condition") -> T:
    """Return the first true value of `condition`; fail the test if there is none within `timeout_s`.

    The longer it has waited, and the longer a look takes, the later is the next one.
    """
    began = looked = time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        if now >= began + timeout_s:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s; last seen: {value!r}")
        pause_s = min(max(_FIRST_PAUSE_S, (now - began) / 20), _LONGEST_PAUSE_S)
        time.sleep(max(pause_s, min(now - looked, _LONGEST_REST_S)))
        looked = time.monotonic()
    return value

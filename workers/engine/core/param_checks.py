"""Refuses single values of a request in words: name, value, remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workers.engine.core.errors import InvalidParams


def require_int(name: str, value: object, low: int, high: int | None) -> None:
    """Refuse what is not an integer from `low` to `high`; None means without end."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParams(f"{name} is {value!r}; give an integer")
    if value < low or (high is not None and value > high):
        raise InvalidParams(f"{name} is {value}; give an integer {_range_text(low, high)}")


def require_number(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is not a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidParams(f"{name} is {value!r}; give a finite number")
    if not low <= value <= high:
        raise InvalidParams(f"{name} is {value}; give a number {_range_text(low, high)}")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise InvalidParams(f"{name} is {value!r}; give True or False")


def require_strings(kind: str, values: Sequence[object], max_count: int, max_chars: int) -> None:
    """Refuse too many strings, and each one that is empty or too long."""
    if len(values) > max_count:
        raise InvalidParams(f"{len(values)} {kind}s; give at most {max_count}")
    for text in values:
        if not isinstance(text, str) or not text or len(text) > max_chars:
            raise InvalidParams(f"{kind} {text!r:.80} is not served; give 1 to {max_chars} characters")


def _range_text(low: float, high: float | None) -> str:
    return f"of at least {low}" if high is None else f"between {low} and {high}"

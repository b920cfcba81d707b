"""Which texts and JSON values can go all the way: through JSON readers and into Postgres."""

from __future__ import annotations

import math
from typing import Any

MAX_DEPTH = 64
"""A reader of JSON gives up at some depth (pydantic's at about 200), and the job could not be admitted."""
MAX_INT_BITS = 1024
"""Readers refuse integers of thousands of digits; this is where floating point ends as well."""


def storable_text(text: str) -> str:
    """Refuse what Postgres or JSON cannot hold: NUL characters and lone surrogates."""
    if "\x00" in text:
        raise ValueError(f"text holds a NUL character at position {text.index(chr(0))}: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds a lone surrogate at position {error.start}: re-decode the input as UTF-8"
        ) from error
    return text


def check_json(value: Any, name: str, depth: int = 0) -> None:
    """Refuse what not every reader of JSON takes: NaN, infinities, wide integers, deep nesting, odd text."""
    if isinstance(value, str):
        storable_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} holds {value}, which is not JSON: use null or a string")
    elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise ValueError(
            f"{name} holds an integer of {value.bit_length()} bits, at most {MAX_INT_BITS}: use a string"
        )
    elif isinstance(value, (dict, list)):
        if depth == MAX_DEPTH:
            raise ValueError(f"{name} is nested more than {MAX_DEPTH} deep: flatten it")
        for item in value.values() if isinstance(value, dict) else value:
            check_json(item, name, depth + 1)
        for key in value if isinstance(value, dict) else ():
            storable_text(key)

"""How a rejected value is shown in a message: enough to know it again, never a page of it."""

from __future__ import annotations

import re

_MAX_VALUE_CHARS = 80
_SECRET = re.compile("(redis_url|database_url|password|secret_key)$", re.IGNORECASE)


def told(field: str, value: object) -> str:
    """Show a field with its rejected value, unless that is a secret or may hold one."""
    return field if _SECRET.search(field) else f"{field}={shortened(value)}"


def shortened(value: object) -> str:
    """Render a rejected value, cut to what fits in a line of text."""
    if isinstance(value, int) and value.bit_length() > _MAX_VALUE_CHARS:
        return f"an integer of {value.bit_length()} bits"
    try:
        return cut(repr(value[: _MAX_VALUE_CHARS + 1] if isinstance(value, str) else value))
    except (ValueError, RecursionError):  # an integer of thousands of digits somewhere in it, or no bottom
        return f"a {type(value).__name__}"


def cut(text: str) -> str:
    """Cut a text to what fits in a line."""
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."

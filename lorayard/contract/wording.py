"""How a rejected value is shown in a message: enough to know it again, never a page of it nor a password."""

from __future__ import annotations

import re
from urllib.parse import unquote

_MAX_VALUE_CHARS = 80
_SECRET = re.compile("(password|secret_key)$", re.IGNORECASE)
_URL = re.compile("(redis|database)_url$", re.IGNORECASE)


def told(field: str, value: object) -> str:
    """Show a field with its rejected value, unless that is a secret; of a URL all but its password."""
    is_url = isinstance(value, str) and bool(_URL.search(field))
    if _SECRET.search(field) or (is_url and "://" not in str(value)):  # that may be a password by mistake
        return field
    return f"{field}={shortened(without_password(str(value)) if is_url else value)}"


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


_SECRET_OPTION = re.compile("pass|secret|token|credential", re.IGNORECASE)


def without_password(url: str) -> str:
    """Render a URL for messages: passwords in it are `***`, and so is what may be a piece of one.

    A URL in which a special character of the password was not percent-encoded shows no more than its scheme.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail or "#" in tail:
        return f"{scheme}{separator}***"
    credentials, at, place = authority.rpartition("@")
    user, colon, _ = credentials.partition(":")
    path, question, query = tail.partition("?")
    options = "&".join(_option(item) for item in query.split("&"))
    hidden = "***" if colon else ""
    return f"{scheme}{separator}{user}{colon}{hidden}{at}{_place(place)}{path}{question}{options}"


def _option(item: str) -> str:
    name = item.partition("=")[0]
    return f"{name}=***" if _SECRET_OPTION.search(unquote(name)) else item


def _place(place: str) -> str:
    """Hide a port that is none: without an @ behind it, a password looks like one."""
    hosts = place.split(",")
    return ",".join(re.sub(r":(?!\d*$)[^:\[\]]*$", ":***", host) for host in hosts)

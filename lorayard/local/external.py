"""Checks the servers that the caller names instead of having them started."""

from __future__ import annotations

import re

from lorayard.contract.wording import without_password
from lorayard.local.errors import LocalStackError
from lorayard.local.postgres_server import select_refusal
from lorayard.local.redis_server import ping_refusal

_DRIVER = "postgresql+psycopg://"


def checked_redis_url(url: str) -> str:
    """Return the address of a Redis that answers; raise LocalStackError if none does."""
    try:
        refusal = ping_refusal(url)
    except ValueError as error:
        raise LocalStackError(f"REDIS_URL: {error}") from None
    if refusal is not None:
        raise LocalStackError(
            f"the Redis at {without_password(url)} cannot be used ({refusal}): start it or correct "
            "REDIS_URL, or unset it to have one started here"
        )
    return url


def checked_database_url(url: str) -> str:
    """Return the address, as SQLAlchemy writes it, of a Postgres that answers; else raise LocalStackError."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise LocalStackError(
            f"DATABASE_URL {without_password(url)} is no Postgres address: write postgresql://user:password@host/db"
        )
    if (mistake := _mistake_in(rest)) is not None:
        raise LocalStackError(f"DATABASE_URL cannot be read: {mistake}")
    if (refusal := select_refusal(_DRIVER + rest)) is not None:
        if "://" in refusal:  # libpq quotes a URL that it cannot read, password and all
            refusal = "libpq cannot read the URL: check brackets, and percent-encode what is special"
        raise LocalStackError(
            f"the Postgres at {without_password(url)} cannot be used ({refusal}): start it or correct "
            "DATABASE_URL, or unset it to have one started here"
        )
    return _DRIVER + rest


def _mistake_in(rest: str) -> str | None:
    """Find what is written wrong in an address, without quoting a part that may be a password."""
    host, _, path = rest.partition("/")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        return "a % is not followed by two hexadecimal digits: write %25 for a percent sign itself"
    if "@" not in host and "@" in path.partition("?")[0]:
        return "there is a / before the @: in a user or password, percent-encode it as %2F"
    for place in host.rpartition("@")[2].split(","):
        port = place.rpartition("]")[2].rpartition(":")[2] if ":" in place.rpartition("]")[2] else ""
        if port and not port.isdecimal():
            # Without an @ it may be a password.
            return f"the port {port!r} is not a number" if "@" in host else "the port is not a number"
    return None

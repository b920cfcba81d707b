"""Checks the servers that the caller names instead of having them started."""

from __future__ import annotations

from urllib.parse import urlsplit

from lorayard.local.errors import LocalStackError
from lorayard.local.postgres_server import answers_select
from lorayard.local.redis_server import answers_ping

_DRIVER = "postgresql+psycopg://"


def checked_redis_url(url: str) -> str:
    """Return the address of a Redis that answers; raise LocalStackError if none does."""
    if urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
        raise LocalStackError(
            f"REDIS_URL {_without_secrets(url)} is no Redis address: write redis://host:port/0"
        )
    if not answers_ping(url):
        raise LocalStackError(
            f"the Redis at {_without_secrets(url)} does not answer: start it or check its password, "
            "or unset REDIS_URL to have one started here"
        )
    return url


def checked_database_url(url: str) -> str:
    """Return the address, as SQLAlchemy writes it, of a Postgres that answers; else raise LocalStackError."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise LocalStackError(
            f"DATABASE_URL {_without_secrets(url)} is no Postgres address: write postgresql://user:password@host/db"
        )
    if not answers_select(_DRIVER + rest):
        raise LocalStackError(
            f"the Postgres at {_without_secrets(url)} does not answer: start it or check its user and "
            "password, or unset DATABASE_URL to have one started here"
        )
    return _DRIVER + rest


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

"""Reads a Redis URL: whom to reach and how safely. What else its options say is for other libraries."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from pydantic import AfterValidator, Field
from redis import Redis, SSLConnection
from redis.connection import parse_url

from lorayard.contract.addresses import WITH_PASSWORD
from lorayard.contract.wording import without_password
from lorayard.transport.sentinel import SCHEME, SentinelUrl

_HONOURED: Final = ("host", "port", "path", "db", "username", "password", "client_name", "connection_class")
_TLS_OPTIONS: Final = frozenset(
    name for name in inspect.signature(SSLConnection.__init__).parameters if name.startswith("ssl_")
)
_ADDRESS: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(:(?P<port>\d*))?")
_MAX_PORT: Final = 65_535
_EXAMPLE: Final = "give e.g. redis://127.0.0.1:6379/0"


def connect(url: str, **options: Any) -> Redis:
    """Make a client of redis-py that speaks as its caller chooses, whatever the URL says of that.

    A URL may be shared with other libraries, whose `decode_responses`, `protocol`, timeouts and bounds are
    theirs. Raises ValueError as `valid_redis_url` does.
    """
    if (sentinel := _sentinel(url)) is not None:
        return sentinel.connect(**{"protocol": 2} | options)
    settings = _settings(url)
    if "path" in settings:  # a socket of this machine needs none, and redis-py's refuses to be told
        for name in ("socket_keepalive", "socket_keepalive_options"):
            options.pop(name, None)
    return Redis.from_url(url.partition("?")[0], **{"protocol": 2} | options | settings)


def valid_redis_url(url: str) -> str:
    """Return a URL that can be read; raises ValueError, which names what is wrong and shows no password."""
    if _sentinel(url) is None:
        _settings(url)
    return url


RedisUrl = Annotated[
    str, WITH_PASSWORD, AfterValidator(valid_redis_url), Field(validate_default=True, repr=False)
]
"""A settings field that names a Redis; its password may stand in a field of its own."""


def broker_url(url: str) -> str:
    """Write the URL as Celery reads it: without options that it does not know, a socket by its own scheme."""
    if (sentinel := _sentinel(url)) is not None:
        return sentinel.broker_url()
    settings = _settings(url)
    user, password = (quote(settings.get(name, ""), safe="") for name in ("username", "password"))
    credentials = f"{user}:{password}@" if user or password else ""
    database = settings.get("db", 0)
    if "path" in settings:
        return f"redis+socket://{credentials}{quote(settings['path'])}?virtual_host={database}"
    host = settings.get("host", "127.0.0.1")
    address = f"[{host}]" if ":" in host else quote(host)
    tls = [(name, value) for name, value in _query(url) if name in _TLS_OPTIONS]
    options = f"?{urlencode(tls)}" if tls else ""
    return f"{_scheme(url)}://{credentials}{address}:{settings.get('port', 6379)}/{database}{options}"


def broker_options(url: str) -> dict[str, Any]:
    """Tell Celery's transport what the URL as it reads it cannot say."""
    sentinel = _sentinel(url)
    return {} if sentinel is None else sentinel.broker_options()


def _sentinel(url: str) -> SentinelUrl | None:
    """Read a URL of sentinels; None if it names a server itself, or none at all."""
    if not isinstance(url, str) or _scheme(url) != SCHEME:
        return None
    _require_readable(url)
    try:
        return SentinelUrl.read(url)
    except ValueError as error:
        raise ValueError(f"{_shown(url)} {error}") from None


def _settings(url: str) -> dict[str, Any]:
    """Read what decides whom to reach, as arguments of redis-py."""
    _require_readable(url)
    try:
        found = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # its words may quote a piece of a password
        raise ValueError(
            f"{_shown(url)} is not a Redis URL as it is written: correct the values of its options, and "
            "percent-encode what is special in user and password"
        ) from None
    return {name: value for name, value in found.items() if name in _HONOURED or name in _TLS_OPTIONS}


def _require_readable(url: str) -> None:
    if not isinstance(url, str):
        raise ValueError(f"a {type(url).__name__} is not a Redis URL: {_EXAMPLE}")  # noqa: TRY004
    if _scheme(url) not in ("redis", "rediss", "unix", SCHEME):
        raise ValueError(f"{_shown(url)} is not a Redis URL: {_EXAMPLE}")
    authority, tail = _split(url)
    if "#" in tail or "@" in tail:
        raise ValueError(
            f"{_shown(url)} is not a Redis URL as it is written: percent-encode what is special in user and "
            "password (/ is %2F, ? is %3F, # is %23, @ is %40)"
        )
    path = unquote(tail.partition("?")[0])
    if _scheme(url) == "unix":
        if len(path) < len("/x"):
            raise ValueError(f"{_shown(url)} names no socket: give e.g. unix:///run/redis/redis.sock?db=0")
    elif _scheme(url) != SCHEME:
        _require_address(url, authority.rpartition("@")[2], path)
    for name, _ in _query(url):
        if name.startswith("ssl") and (name not in _TLS_OPTIONS or _scheme(url) != "rediss"):
            raise ValueError(
                f"{_shown(url)} has the option {name}, which is not honoured there: begin with rediss:// and "
                f"use those of redis-py ({', '.join(sorted(_TLS_OPTIONS))}), or leave it out"
            )


def _require_address(url: str, address: str, path: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"] or 1) not in range(1, _MAX_PORT + 1):
        raise ValueError(
            f"{_shown(url)} has no port that is a number from 1 to {_MAX_PORT}, or an odd host: {_EXAMPLE}; "
            "percent-encode what is special in user and password"
        )
    if not re.fullmatch(r"/?\d*", path):
        raise ValueError(f"{_shown(url)} has a database that is not a number: {_EXAMPLE}")


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _split(url: str) -> tuple[str, str]:
    """Part what comes before the first / ? or # from the rest."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return authority, rest[len(authority) :]


def _query(url: str) -> list[tuple[str, str]]:
    return parse_qsl(url.partition("?")[2], keep_blank_values=True)


def _shown(url: str) -> str:
    return repr(without_password(url))

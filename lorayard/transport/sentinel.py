"""Reads a URL of Redis Sentinel: who is asked which server is the primary now, of which service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

SCHEME: Final = "sentinel"
DEFAULT_PORT: Final = 26_379
ASK_S: Final = 1.0
"""A sentinel that is silent for so long is passed over: the next one knows as well."""

_EXAMPLE: Final = "give e.g. sentinel://:password@host1:26379,host2:26379/service?db=0"
_ADDRESS: Final = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:]+)(:(?P<port>\d+))?")
_SERVICE: Final = re.compile(r"[\w.-]+")
_MAX_PORT: Final = 65_535
_CREDENTIALS: Final = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True, repr=False)
class SentinelUrl:
    """One service as its sentinels are asked for it; `settings` are redis-py's, of the primary."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    settings: Mapping[str, Any]
    credentials: Mapping[str, str]
    """Of the sentinels themselves."""

    @classmethod
    def read(cls, url: str) -> SentinelUrl:
        """Read a URL; raises ValueError, whose words do not quote it."""
        authority, _, tail = url.partition("://")[2].partition("/")
        user, _, places = authority.rpartition("@")
        path, _, query = tail.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        service = unquote(path)
        if _SERVICE.fullmatch(service) is None:
            raise ValueError(f"names no service after its hosts: {_EXAMPLE}")
        if not options.get("db", "0").isdecimal():
            raise ValueError(f"has a database that is not a number: {_EXAMPLE}")
        name, _, password = (unquote(part) for part in user.partition(":"))
        own = {"username": name or options.get("username"), "password": password or options.get("password")}
        settings = {key: value for key, value in own.items() if value} | {"db": int(options.get("db", "0"))}
        credentials = {ours: options[given] for given, ours in _CREDENTIALS.items() if given in options}
        return cls(tuple(_address(place) for place in places.split(",")), service, settings, credentials)

    def connect(self, **options: Any) -> Redis:
        """Make a client of the primary, which every new connection asks for anew."""
        manager = Sentinel(  # type: ignore[no-untyped-call]
            list(self.sentinels), sentinel_kwargs=self.asking()
        )
        client: Redis = manager.master_for(  # type: ignore[no-untyped-call]
            self.service, **options, **self.settings
        )
        return client

    def broker_url(self) -> str:
        """Write it as Celery reads it; `broker_options` has the rest."""
        user, password = (quote(self.settings.get(name, ""), safe="") for name in ("username", "password"))
        credentials = f"{user}:{password}@" if user or password else ""
        hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.sentinels]
        return ";".join(f"{SCHEME}://{credentials}{host}/{self.settings['db']}" for host in hosts)

    def broker_options(self) -> dict[str, Any]:
        """Tell Celery's transport what its URL cannot."""
        return {"master_name": self.service, "sentinel_kwargs": self.asking()}

    def asking(self) -> dict[str, Any]:
        """Tell redis-py how a sentinel is asked."""
        return {
            "socket_timeout": ASK_S,
            "socket_connect_timeout": ASK_S,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **self.credentials,
        }


def _address(place: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(place)
    if found is None or int(found["port"] or DEFAULT_PORT) not in range(1, _MAX_PORT + 1):
        raise ValueError(
            f"has no port that is a number from 1 to {_MAX_PORT}, or an odd host: {_EXAMPLE}; "
            "percent-encode what is special in user and password"
        )
    return found["host"].strip("[]"), int(found["port"] or DEFAULT_PORT)

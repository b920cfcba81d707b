"""Reads a webhook's URL and finds the addresses of its host, without making anybody else wait."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import httpx
from publicsuffixlist import PublicSuffixList

from workers.webhooks.addresses import address_group

MAX_ADDRESSES: Final = 4
"""So many addresses of one host are tried at most, and all of them count."""

MAX_HOST_CHARS: Final = 253

_PORTS: Final = {"http": 80, "https": 443}


class UncallableUrl(ValueError):
    """No webhook can ever be sent to a URL."""


class Target(NamedTuple):
    """Where a URL leads: `host` in ASCII and lower case, `domain` the registrable one it belongs to."""

    url: httpx.URL
    host: str
    port: int
    domain: str

    @property
    def authorization(self) -> dict[str, str]:
        """The header for a user and password in the URL, if it has them."""
        if not self.url.userinfo:
            return {}
        user = f"{self.url.username}:{self.url.password}".encode()
        return {"authorization": f"Basic {base64.b64encode(user).decode()}"}


def read_url(url: str) -> Target:
    """Read a URL as the one who calls it does; raises UncallableUrl."""
    try:
        parsed = httpx.URL(url)
        _ = parsed.host  # decodes it, which not every name that begins with xn-- lets be done
        host = parsed.raw_host.decode("ascii").lower().rstrip(".")
        host.encode("idna")  # what getaddrinfo does: labels that are empty or too long
    except (httpx.InvalidURL, ValueError) as error:
        raise UncallableUrl(f"callback_url {url!r} cannot be called: {error}") from error
    port = _PORTS.get(parsed.scheme, 0) if parsed.port is None else parsed.port
    if parsed.scheme not in _PORTS or not host or "%" in host or len(host) > MAX_HOST_CHARS:
        raise UncallableUrl(f"callback_url {url!r} cannot be called: it is not an http(s) URL with a host")
    if not 0 < port < 65_536:
        raise UncallableUrl(f"callback_url {url!r} cannot be called: there is no port {port}")
    return Target(parsed, host, port, registrable_domain(host))


def registrable_domain(host: str) -> str:
    """Name what a host counts as: the domain that somebody registered, or the address that it is.

    By the Public Suffix List, private suffixes included (customers of a hoster are strangers to each other).
    """
    try:
        return address_group(host)
    except ValueError:
        return _suffixes().privatesuffix(host) or host


class Lookups:
    """Finds addresses by the system's resolver, each on a thread of its own.

    A thread cannot be stopped: whoever waits no longer must count it as long as its future is not done. Hence
    there are as many threads at most as there are places, and nobody's names wait for another's.
    """

    def __init__(self, resolve: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._resolve = resolve

    def start(self, host: str, port: int) -> asyncio.Future[list[str]]:
        """Look a host up; the future raises OSError if it does not resolve, ValueError if it never can."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()

        def finish(addresses: list[str], error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(addresses)
            else:
                future.set_exception(error)

        def look_up() -> None:
            addresses, failure = [], None
            try:
                found = self._resolve(host, port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, addresses, failure)

        try:
            threading.Thread(target=look_up, name="lookup", daemon=True).start()
        except RuntimeError as error:
            future.set_exception(OSError(f"no thread for it: {error}"))
        return future


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()

"""Connects only to addresses that a webhook may reach: a producer's URL must not open our own network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore

from workers.webhooks.settings import Network

Address = IPv4Address | IPv6Address

# Public by the registry, yet they lead inwards: NAT64, 6to4 and its relays, site-local.
_TUNNELS: tuple[Network, ...] = tuple(
    ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "192.88.99.0/24", "fec0::/10")
)


class AddressBlocked(Exception):
    """A host resolves to an address that webhooks may not reach."""


class AddressPolicy:
    """Which addresses webhooks may reach: public ones, and the networks explicitly allowed."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def permits(self, address: Address) -> bool:
        """Judge one address; an IPv4 address in IPv6 clothes is judged as what it is."""
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address.version == net.version and address in net for net in self._allowed):
            return True
        hidden = any(address.version == net.version and address in net for net in _TUNNELS)
        return address.is_global and not address.is_multicast and not hidden

    def check(self, host: str, addresses: Sequence[str]) -> None:
        """Raise AddressBlocked if any address is off limits: one bad answer makes the name suspect."""
        for text in addresses:
            if not self.permits(ip_address(text.split("%")[0])):
                raise AddressBlocked(
                    f"host {host!r} resolves to {text}, which is not public: use a public URL, or allow its "
                    "network with LORAYARD_WEBHOOK_ALLOW"
                )


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, checks and connects to the checked address: a second look-up could answer differently."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers."""
        addresses = await _resolve(host, port)
        self._policy.check(host, addresses)
        failure: Exception = httpcore.ConnectError(f"host {host!r} has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no webhook leads to a file."""
        del timeout, socket_options
        raise AddressBlocked(f"{path} is a Unix socket, not a host")

    async def sleep(self, seconds: float) -> None:
        """Wait between connection retries."""
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"host {host!r} does not resolve: {error}") from error
    return list(dict.fromkeys(str(info[4][0]) for info in found))

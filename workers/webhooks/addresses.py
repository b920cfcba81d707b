"""Judges which addresses a webhook may reach: a producer's URL must not open our own network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from workers.webhooks.settings import Network

Address = IPv4Address | IPv6Address

# Our own table, since `is_global` differs between releases of Python (3.11.7 lets ten of these through).
# Sources: https://www.iana.org/assignments/iana-ipv6-special-registry as updated on 2025-10-09,
# https://www.iana.org/assignments/iana-ipv4-special-registry as updated on 2020-09-04; RFC 5771, multicast.
# Blocks that the registries split are whole here, anycast services included: no receiver lives there.
_NOT_PUBLIC: Final[tuple[Network, ...]] = tuple(
    ip_network(net)
    for net in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared, behind carriers' NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, benchmarks, AMT, ORCHID, ...
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All that is allocated of IPv6. Outside lie loopback, mapped, compatible and translated IPv4, NAT64,
discard-only, segment routing, private, link-local, site-local and multicast addresses."""


_SITE_BITS: Final = 48
"""The most of an IPv6 address that one site is usually given: all of it counts as one address."""


class AddressBlocked(Exception):
    """A host resolves to an address that webhooks may not reach."""


class AddressPolicy:
    """Which addresses webhooks may reach: public ones, and the networks explicitly allowed."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def permits(self, address: Address) -> bool:
        """Judge one address; one of IPv4 that is mapped into IPv6 is judged as what it is."""
        address = _unmapped(address)
        if _is_in(address, self._allowed):
            return True
        if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
            return False
        return not _is_in(address, _NOT_PUBLIC)

    def check(self, host: str, addresses: Sequence[str]) -> None:
        """Raise AddressBlocked if any address is off limits: one bad answer makes the name suspect."""
        for text in addresses:
            if not self.permits(parse_address(text)):
                raise AddressBlocked(
                    f"host {host!r} resolves to {text}, which is not public: use a public URL, or allow its "
                    "network with LORAYARD_WEBHOOK_ALLOW"
                )


def parse_address(text: str) -> Address:
    """Read an address without its zone; raises ValueError."""
    return ip_address(text.split("%")[0])


def address_group(text: str) -> str:
    """Name what counts as one address when places are shared out: an IPv4 address, an IPv6 site."""
    address = _unmapped(parse_address(text))
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((int(address), _SITE_BITS), strict=False))


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == net.version and address in net for net in networks)

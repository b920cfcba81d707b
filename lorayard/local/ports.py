"""Chooses loopback ports that no outgoing connection can take between two starts of a server."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from lorayard.local.errors import PortUnavailable

LOOPBACK = "127.0.0.1"
_LOWEST = 10_000
_TRIES = 200
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port that is free now; the caller retries if it is taken before the server binds it.

    A port of the kernel's ephemeral range could, while a server restarts, become the source port of any
    outgoing connection, even of a client that then connects to itself. So the choice is made below it.
    """
    end = _first_ephemeral_port()
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(end - _LOWEST)
        if is_free(port):
            return port
    raise PortUnavailable(f"no free port among {_TRIES} tried on {LOOPBACK} in {_LOWEST}-{end}; name one")


def is_free(port: int) -> bool:
    """Whether a listener may bind this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _first_ephemeral_port() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except OSError:
        first = 32_768
    return first if first > _LOWEST + 1_000 else 65_536

"""Makes every Redis client, by its use: each timeout, bound, retry and keepalive is chosen here.

URLs decide whom to reach and nothing else; defaults of redis-py differ between its versions.
"""

from __future__ import annotations

import socket
from typing import Any, Final

from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from lorayard.transport.redis_url import connect

MAX_CONNECTIONS: Final = 10_000
"""One a thread at work; redis-py's own bound of 100 would fail the 101st thread."""

SERVICE_TIMEOUT_S: Final = 15.0
SERVICE_CONNECT_TIMEOUT_S: Final = 5.0
"""A dead server must fail a command within seconds, not hang it."""

HEALTH_CHECK_S: Final = 25
"""A connection that was idle for so long is tried first: NAT tables forget it in a few minutes."""

PROBE_TIMEOUT_S: Final = 1.0

KEEPALIVE: Final = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # macOS calls the first by another name, and keeps its own
}
"""A peer that vanished is noticed after 25 s, where the kernel's own default is two hours."""


def for_commands(url: str, timeout_s: float) -> Redis:
    """Make a producer's client: a refused or lost connection is tried again for about 0.4 s, no timeout is.

    A timeout repeated would multiply the caller's wait.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3, (redis_errors.ConnectionError,))
    return _client(url, retry=retry, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


def for_blocking_reads(url: str, timeout_s: float, connect_timeout_s: float) -> Redis:
    """Make a client for a thread that deals with lost connections itself."""
    return _client(
        url,
        retry=_never(),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(connect_timeout_s, timeout_s),
    )


def for_service(url: str) -> Redis:
    """Make the client of a scheduler or worker, whose loops ride outages out and begin anew themselves."""
    return _client(
        url,
        retry=_never(),
        socket_timeout=SERVICE_TIMEOUT_S,
        socket_connect_timeout=SERVICE_CONNECT_TIMEOUT_S,
        health_check_interval=HEALTH_CHECK_S,
    )


def for_probe(url: str) -> Redis:
    """Make a client that asks once and soon gives up."""
    return _client(
        url, retry=_never(), socket_timeout=PROBE_TIMEOUT_S, socket_connect_timeout=PROBE_TIMEOUT_S
    )


def _client(url: str, **chosen: Any) -> Redis:
    common = {
        "max_connections": MAX_CONNECTIONS,
        "socket_keepalive": True,
        "socket_keepalive_options": KEEPALIVE,
        "health_check_interval": 0,
        "decode_responses": False,
    }
    return connect(url, **(common | chosen))


def _never() -> Retry:
    return Retry(NoBackoff(), 0, ())

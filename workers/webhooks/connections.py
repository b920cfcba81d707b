"""Connects to addresses that were looked up and judged before, and reads no more than an answer needs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpcore
import httpx

from workers.webhooks.addresses import AddressBlocked, AddressPolicy
from workers.webhooks.running_time import RunningTime

MAX_READ_BYTES: Final = 65_536
"""Of one answer: its head, the informational ones before it, and what is read of its body."""

_CHUNK_BYTES: Final = 16_384
"""The most that is parsed at once, so that a flood holds up no other delivery."""

KEEP_ALIVE_S: Final = 15.0

ADDRESSES: ContextVar[Sequence[str]] = ContextVar("ADDRESSES")
"""The addresses that the present delivery may connect to: another look-up could answer differently, and
httpcore passes nothing else on to where it connects."""


class BoundedStream(httpcore.AsyncNetworkStream):
    """Mutable: a connection that gives up on an answer of more than MAX_READ_BYTES."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._num_read = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read some of an answer."""
        if self._num_read >= MAX_READ_BYTES:
            raise httpcore.ReadError(f"more than {MAX_READ_BYTES} bytes of an answer that does not end")
        read = await self._stream.read(min(max_bytes, _CHUNK_BYTES), timeout)
        self._num_read += len(read)
        return read

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write some of a request, after which another answer begins."""
        self._num_read = 0
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Go on in TLS."""
        try:
            async with _connecting(timeout):
                return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname))
        except httpcore.ConnectTimeout:
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Tell what the transport knows."""
        return self._stream.get_extra_info(info)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses in ADDRESSES, each judged once more."""

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
        failure: Exception = httpcore.ConnectError(f"host {host!r} has no address")
        for address in ADDRESSES.get():
            self._policy.check(host, [address])
            try:
                async with _connecting(timeout):
                    stream = await self._backend.connect_tcp(
                        address, port, None, local_address, socket_options
                    )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return BoundedStream(stream)
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


@asynccontextmanager
async def _connecting(limit_s: float | None) -> AsyncIterator[None]:
    """Limit what it takes to connect, as httpcore does; here only time in which the loop ran counts."""
    try:
        async with RunningTime(limit_s):
            yield
    except TimeoutError as error:
        raise httpcore.ConnectTimeout from error


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, without its client's cookies and redirects, on a pool that checks connections."""

    def __init__(self, policy: AddressPolicy, num_connections: int) -> None:
        super().__init__()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=num_connections,
            max_keepalive_connections=num_connections,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=GuardedBackend(policy),
        )

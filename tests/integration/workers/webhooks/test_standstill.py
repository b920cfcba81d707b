"""A relay that was stopped during its tries reads what has come meanwhile, and blames nobody for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_network
from typing import Any, TypeVar, cast

import httpcore
from sqlalchemy import Connection

from db import Database
from db.errors import DatabaseUnavailable
from db.records import Delivery
from tests.unit.workers.webhooks.stopped_loop import jump
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.connections import ADDRESSES, GuardedBackend
from workers.webhooks.lookup import read_url
from workers.webhooks.outbox import Outbox
from workers.webhooks.schedule import DeliveryAttempt, DeliveryVerdict
from workers.webhooks.sender import Sender

T = TypeVar("T")

STOP_S = 100.0
POLICY = AddressPolicy([ip_network("127.0.0.0/8")])


async def post_to(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> DeliveryAttempt:
    """Post to a server during whose answer the process is stopped."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        await jump(STOP_S)
        await answer(writer)
        await reader.read()  # until it is hung up on
        writer.transport.abort()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Sender(POLICY, timeout_s=15.0) as sender:
        target = read_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        attempt = await sender.post(target, "{}", {}, ["127.0.0.1"])
    await asyncio.wait_for(ended.wait(), 30)
    server.close()
    return attempt


def test_an_answer_that_came_meanwhile_is_read() -> None:
    async def accept(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    assert asyncio.run(post_to(accept)) == DeliveryAttempt(204)


def test_a_refusal_that_came_meanwhile_is_the_receivers() -> None:
    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")

    attempt = asyncio.run(post_to(refuse))

    assert (attempt.status, attempt.is_ours, attempt.is_soon) == (500, False, False)


def test_a_receiver_that_hung_up_on_a_stopped_relay_is_not_blamed() -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    attempt = asyncio.run(post_to(hang_up))

    assert (attempt.status, attempt.is_ours, attempt.is_soon) == (None, True, True)
    assert attempt.error.startswith("the relay stood still for ")


def test_a_look_up_that_ended_meanwhile_is_read() -> None:
    async def look_up() -> list[str] | DeliveryAttempt:
        loop = asyncio.get_running_loop()

        def resolve(*_: object, **__: object) -> list[Any]:
            asyncio.run_coroutine_threadsafe(jump(STOP_S), loop).result(30)
            return [(2, 1, 6, "", ("127.0.0.1", 80))]

        async with Sender(POLICY, timeout_s=15.0, resolve=resolve) as sender:
            target = read_url("http://slow.example/")
            return await sender.addresses_of(target, sender.look_up(target))

    assert asyncio.run(look_up()) == ["127.0.0.1"]


class _StoppedBackend(httpcore.AnyIOBackend):
    """Connects, and the process is stopped before that is done."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        await jump(STOP_S)
        return await super().connect_tcp(host, port, timeout, local_address, socket_options)


def test_a_connection_that_was_made_meanwhile_is_used() -> None:
    async def connect() -> bool:
        closed = asyncio.Event()

        def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()
            closed.set()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        backend = GuardedBackend(POLICY)
        backend._backend = _StoppedBackend()
        ADDRESSES.set(["127.0.0.1"])
        stream = await backend.connect_tcp("a.example", server.sockets[0].getsockname()[1], timeout=5.0)
        await stream.aclose()
        await asyncio.wait_for(closed.wait(), 30)
        server.close()
        return True

    assert asyncio.run(connect())


class _TroubledDatabase:
    """A ledger that is away twice, between which the process is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.num_tries = 0

    def run(self, _work: Callable[[Connection], T]) -> bool:
        self.num_tries += 1
        if self.num_tries > 2:
            return True
        asyncio.run_coroutine_threadsafe(jump(STOP_S), self._loop).result(30)
        raise DatabaseUnavailable("told to be away")


def test_a_result_is_kept_for_a_ledger_that_was_away_while_the_relay_was_stopped() -> None:
    async def finish() -> bool | None:
        database = cast("Database", _TroubledDatabase(asyncio.get_running_loop()))
        outbox, unread = Outbox(database, database, lease_s=12.0), cast("Delivery", None)
        return await outbox.finish(unread, DeliveryVerdict("delivered"), DeliveryAttempt(204), 90.0)

    assert asyncio.run(finish()) is True

"""One try ends in time and in an answer, whatever is at the other end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest

from tests.integration.workers.webhooks.receiver import Receiver, listening
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.lookup import read_url
from workers.webhooks.schedule import DeliveryAttempt
from workers.webhooks.sender import Sender

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def post(url: str, timeout_s: float = 5.0) -> DeliveryAttempt:
    async with Sender(AddressPolicy([ip_network("127.0.0.0/8")]), timeout_s) as sender:
        target = read_url(url)
        addresses = await sender.addresses_of(target, sender.look_up(target))
        if isinstance(addresses, DeliveryAttempt):
            return addresses
        return await sender.post(target, "{}", {"webhook-id": "1"}, addresses)


async def post_to(answer: Answer, timeout_s: float) -> DeliveryAttempt:
    """Post to a server that answers in its own way until it is hung up on."""
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Unread bytes would turn our closing into a reset, which may overtake the answer.
        await reader.readuntil(b"\r\n\r\n{}")
        with contextlib.suppress(ConnectionError):
            await answer(writer)
        writer.transport.abort()
        answered.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    attempt = await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout_s)
    await asyncio.wait_for(answered.wait(), 10)
    server.close()
    return attempt


@pytest.mark.parametrize(
    "url", ["http://a..b/", f"http://{'a' * 70}.com/", "http://xn--/", "http://[v1.x]/", "ftp://example.com/"]
)
def test_a_host_that_cannot_even_be_looked_up_is_given_up_at_once(url: str) -> None:
    attempt = asyncio.run(post(url))

    assert attempt.refused
    assert repr(url) in attempt.error


def test_a_closed_port_is_a_failure_that_may_pass() -> None:
    attempt = asyncio.run(post("http://127.0.0.1:9/"))

    assert not attempt.refused
    assert attempt.status is None
    assert attempt.error.startswith("Connect")


def test_a_host_that_drips_its_answer_is_cut_off() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Slow\r\ncontent-length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)

    attempt = asyncio.run(post_to(drip, timeout_s=0.5))

    assert attempt == DeliveryAttempt(None, "no whole answer within 0.5 s")


def test_of_an_endless_answer_only_the_start_is_read() -> None:
    async def pour(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Broken\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            await writer.drain()

    attempt = asyncio.run(post_to(pour, timeout_s=20.0))

    assert attempt.status == 500
    assert 2048 <= len(attempt.error) < 2200


def test_what_is_no_http_is_a_failure_that_may_pass() -> None:
    async def babble(writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n")
        writer.close()
        await writer.wait_closed()

    attempt = asyncio.run(post_to(babble, timeout_s=5.0))

    assert (attempt.status, attempt.refused) == (None, False)
    assert "Protocol" in attempt.error


@pytest.mark.parametrize(
    ("value", "expected"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-1", None)]
)
def test_retry_after_is_seconds_or_a_date(value: str, expected: float | None) -> None:
    with listening(Receiver(statuses=[503], headers={"retry-after": value})) as receiver:
        attempt = asyncio.run(post(receiver.url))

    assert (attempt.status, attempt.retry_after_s) == (503, expected)

"""One try ends in time and in an answer, whatever is at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
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


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"
ANSWERS = {
    # what a receiver writes: the status that counts, and a word of the error
    "a date of no year": (
        OK + b"retry-after: Wed, 21 Oct 99999999999999999999 07:28:00 GMT\r\n\r\n",
        200,
        "",
    ),
    "a date of no zone": (OK + b"retry-after: Wed, 21 Oct 2015 07:28:00 -9999999999\r\n\r\n", 200, ""),
    "digits without end": (OK + b"retry-after: " + b"9" * 5000 + b"\r\n\r\n", 200, ""),
    "other people's digits": (OK + "retry-after: ٣²\r\n\r\n".encode(), 200, ""),
    "bytes that are no text": (OK + b"x: \xff\xfe\r\nset-cookie: \xc3\x28=1\r\n\r\n", 200, ""),
    "a redirect to nowhere": (
        b"HTTP/1.1 302 X\r\nlocation: http://[::1\r\ncontent-length: 0\r\n\r\n",
        302,
        "302",
    ),
    "a redirect by a bad port": (
        b"HTTP/1.1 307 X\r\nlocation: http://a:b/\r\ncontent-length: 0\r\n\r\n",
        307,
        "307",
    ),
    "a challenge": (b"HTTP/1.1 401 X\r\nwww-authenticate: Digest \r\ncontent-length: 0\r\n\r\n", 401, "401"),
    "broken chunks": (b"HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 503, "503"),
    "a chunk of no end": (
        b"HTTP/1.1 410 X\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        410,
        "410",
    ),
    "less than it said": (b"HTTP/1.1 500 X\r\ncontent-length: 99\r\n\r\nshort", 500, "short"),
    "more than it said": (b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\nshort", 500, "sh"),
    "not what it said": (b"HTTP/1.1 500 X\r\ncontent-encoding: gzip\r\n\r\nno gzip", 500, "no gzip"),
    "two lengths": (b"HTTP/1.1 200 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", None, "Protocol"),
    "a length below zero": (b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\n", None, "Protocol"),
    "a status of two digits": (b"HTTP/1.1 20 X\r\n\r\n", None, "Protocol"),
    "a status of no meaning": (b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", 999, "999"),
    "an upgrade": (b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", None, "Protocol"),
    "a header without a name": (b"HTTP/1.1 200 X\r\n: x\r\n\r\n", None, "Protocol"),
    "nothing": (b"", None, "disconnected"),
    "half a head": (b"HTTP/1.1 200 OK\r\nx: ", None, "disconnected"),
    "another protocol": (b"\x15\x03\x01\x00\x02\x02\x28", None, "Protocol"),
    "nul bytes": (b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\na\x00b", 500, "ab"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_a_receiver_answers_is_an_attempt(name: str) -> None:
    answer, status, word = ANSWERS[name]

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    attempt = asyncio.run(post_to(write, timeout_s=5.0))

    assert (attempt.status, attempt.refused) == (status, False)
    assert word in attempt.error
    assert "\x00" not in attempt.error


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 100 Go on\r\n\r\n" * 1000,
        b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000,
    ],
)
def test_a_head_without_end_is_cut_off_long_before_the_time_is_up(flood: bytes) -> None:
    async def pour(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(flood)
            await writer.drain()

    attempt = asyncio.run(post_to(pour, timeout_s=60.0))

    assert (attempt.status, attempt.refused) == (None, False)
    assert "ReadError: more than 65536 bytes" in attempt.error


def test_no_cookie_of_one_receiver_is_sent_to_another() -> None:
    async def post_twice(url: str) -> None:
        async with Sender(AddressPolicy([ip_network("127.0.0.0/8")]), 5.0) as sender:
            for host in ("127.0.0.1", "localhost"):
                target = read_url(url.replace("127.0.0.1", host))
                await sender.post(target, "{}", {}, ["127.0.0.1"])

    with listening(Receiver(headers={"set-cookie": "a=b; domain=localhost"})) as receiver:
        asyncio.run(post_twice(receiver.url))

    assert len(receiver.received) == 2
    assert not any("cookie" in name.lower() for _, headers in receiver.received for name in headers)


def test_a_user_in_the_url_is_told_to_the_receiver() -> None:
    with listening(Receiver()) as receiver:
        asyncio.run(post(receiver.url.replace("://", "://user:pass%20word@")))

    assert receiver.received[0][1]["authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="


def test_a_server_that_does_not_speak_tls_is_a_failure_that_may_pass() -> None:
    with listening(Receiver()) as receiver:
        attempt = asyncio.run(post(receiver.url.replace("http:", "https:")))

    assert (attempt.status, attempt.refused) == (None, False)
    assert attempt.error.startswith("ConnectError")


def test_the_address_connected_to_is_judged_whatever_was_looked_up_before() -> None:
    async def post_elsewhere(url: str) -> DeliveryAttempt:
        async with Sender(AddressPolicy(), 5.0) as sender:
            return await sender.post(read_url(url), "{}", {}, ["127.0.0.1"])

    with listening(Receiver()) as receiver:
        attempt = asyncio.run(post_elsewhere(receiver.url.replace("127.0.0.1", "public.example")))

    assert attempt.refused
    assert not receiver.received


def test_a_look_up_that_hangs_ends_the_try_and_not_the_thread() -> None:
    release = threading.Event()

    async def look_up() -> tuple[list[str] | DeliveryAttempt, bool, bool]:
        def hang(*_: object, **__: object) -> list[object]:
            release.wait(30)
            return []

        async with Sender(AddressPolicy(), 0.2, resolve=hang) as sender:
            target = read_url("http://slow.example/")
            lookup = sender.look_up(target)
            found, was_done = await sender.addresses_of(target, lookup), lookup.done()
            release.set()
            await asyncio.wait({lookup}, timeout=10)
            return found, was_done, lookup.done()

    found, was_done, is_done = asyncio.run(look_up())

    assert found == DeliveryAttempt(None, "host 'slow.example' does not resolve within 0.2 s")
    assert (was_done, is_done) == (False, True)


def test_there_is_a_connection_for_every_place() -> None:
    assert Sender(AddressPolicy(), 5.0, 100)._transport._pool._max_connections == 100


@pytest.mark.parametrize(
    ("value", "expected"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-1", None)]
)
def test_retry_after_is_seconds_or_a_date(value: str, expected: float | None) -> None:
    with listening(Receiver(statuses=[503], headers={"retry-after": value})) as receiver:
        attempt = asyncio.run(post(receiver.url))

    assert (attempt.status, attempt.retry_after_s) == (503, expected)

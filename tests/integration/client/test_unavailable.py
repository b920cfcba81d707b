"""What a producer is told when Redis is not there, or will not."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from lorayard import Client
from lorayard.contract.errors import Unavailable
from tests.integration.client.tiny_leader import KEYS, connect, register_pool

if TYPE_CHECKING:
    from lorayard.local import RedisServer


def closed_port() -> int:
    """Find a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    with (
        Client(f"redis://user:secret@127.0.0.1:{closed_port()}/0") as client,
        pytest.raises(
            Unavailable, match=r"redis://user:\*\*\*@127.0.0.1.*nothing was submitted.*lorayard up"
        ) as raised,
    ):
        client.submit("hello")

    assert "secret" not in str(raised.value)
    assert isinstance(raised.value, ConnectionError)


def test_a_redis_that_never_answers_is_told_after_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            Client(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=0.3) as client,
            pytest.raises(Unavailable, match=r"Timeout.*nothing was submitted"),
        ):
            client.submit("hello")


def test_a_redis_that_falls_silent_leaves_open_what_arrived(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    with Client(own_redis.url, timeout_s=1.0) as client:
        client.submit("hello")
        connect(own_redis.url).client_pause(3_000)

        with pytest.raises(Unavailable, match="may or may not have arrived, so submit again with an idempo"):
            client.submit("hello")


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(Unavailable, match=r"'localhost:6379' is not a Redis URL.*give e.g. redis://"):
        Client("localhost:6379")


def test_a_wrong_password_is_told_as_such(own_redis: RedisServer) -> None:
    with (
        Client(f"redis://:wrong@127.0.0.1:{own_redis.port}/0") as client,
        pytest.raises(Unavailable, match="check the user and the password"),
    ):
        client.submit("hello")


def test_a_full_redis_is_told_as_such(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    server = connect(own_redis.url)
    server.config_set("maxmemory", "1")

    with Client(own_redis.url) as client, pytest.raises(Unavailable, match=r"OOM.*raise maxmemory"):
        client.submit("hello")

    assert server.xlen(KEYS.jobs("normal")) == 0


def test_a_read_only_replica_is_told_as_such(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    server = connect(own_redis.url)
    server.slaveof("127.0.0.1", closed_port())

    with Client(own_redis.url) as client, pytest.raises(Unavailable, match=r"READONLY.*at the primary"):
        client.submit("hello")


def test_a_redis_that_dies_in_the_middle_leaves_the_handles_of_what_went_in(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    server = connect(own_redis.url)
    with Client(own_redis.url) as client:
        client.submit("hello")
        # The first blocks fit, as memory is checked before each one; 15 MB of prompts do not.
        server.config_set("maxmemory", str(server.info("memory")["used_memory"] + 4_000_000))

        with pytest.raises(Unavailable, match="OOM") as raised:
            client.submit_many([{"prompt": "x" * 3_000}] * 5_000)

    accepted = len(raised.value.accepted)
    assert 0 < accepted < 5_000
    assert server.xlen(KEYS.jobs("normal")) == accepted + 1

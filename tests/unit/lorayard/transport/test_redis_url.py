"""A URL says whom to reach; how to speak is ours, whatever other libraries want of the same URL."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lorayard import Client, Unavailable
from lorayard.server.celery_app import make_app
from lorayard.transport.connections import for_service
from lorayard.transport.redis_link import RedisLink
from lorayard.transport.redis_url import broker_url, connect, valid_redis_url

OURS = {
    "decode_responses",
    "encoding",
    "protocol",
    "socket_timeout",
    "max_connections",
    "health_check_interval",
}


def options(url: str) -> dict[str, Any]:
    kwargs: dict[str, Any] = connect(url, socket_timeout=7.0).connection_pool.connection_kwargs
    return kwargs


@pytest.mark.parametrize(
    "query",
    [
        "decode_responses=True", "encoding=latin-1", "protocol=3", "socket_timeout=0.05", "max_connections=1",
        "socket_connect_timeout=0.001", "health_check_interval=1", "retry_on_timeout=yes", "timeout=0",
        "legacy_responses=0", "parser_class=x", "connection_class=x", "made_up=1", "visibility_timeout=3600",
    ],
)  # fmt: skip
def test_options_that_change_how_we_speak_are_for_others(query: str) -> None:
    plain, shared = options("redis://h:1/2"), options(f"redis://h:1/2?{query}")

    assert {name: shared.get(name) for name in OURS} == {name: plain.get(name) for name in OURS}
    assert shared.keys() == plain.keys()
    assert shared["socket_timeout"] == 7.0
    assert broker_url(f"redis://h:1/2?{query}") == "redis://h:1/2"


@pytest.mark.parametrize(
    ("url", "reached", "broker"),
    [
        ("redis://h", {"host": "h"}, "redis://h:6379/0"),
        ("redis://h/?db=3", {"host": "h", "db": 3}, "redis://h:6379/3"),
        ("redis://u:p%2Fw%40@h:1/2", {"username": "u", "password": "p/w@", "port": 1, "db": 2},
         "redis://u:p%2Fw%40@h:1/2"),
        ("redis://:se@cr:et@h/0", {"password": "se@cr:et", "host": "h"}, "redis://:se%40cr%3Aet@h:6379/0"),
        ("redis://h/0?password=s%26t&client_name=me", {"password": "s&t", "client_name": "me"},
         "redis://:s%26t@h:6379/0"),
        ("redis://[::1]:7/1", {"host": "::1", "port": 7, "db": 1}, "redis://[::1]:7/1"),
        ("rediss://h/0?ssl_cert_reqs=none", {"ssl_cert_reqs": "none"}, "rediss://h:6379/0?ssl_cert_reqs=none"),
        ("unix:///run/r.sock", {"path": "/run/r.sock"}, "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix://:p%2F@/run/a%20b.sock?db=5", {"path": "/run/a b.sock", "password": "p/", "db": 5},
         "redis+socket://:p%2F@/run/a%20b.sock?virtual_host=5"),
    ],
)  # fmt: skip
def test_redis_and_celery_reach_the_same_server(url: str, reached: dict[str, Any], broker: str) -> None:
    assert options(url).items() >= reached.items()
    assert for_service(url).connection_pool.make_connection()
    assert RedisLink(url, 1.0).commands.connection_pool.make_connection()
    assert broker_url(url) == broker
    assert make_app(url).conf.broker_url == broker


@pytest.mark.parametrize(
    ("url", "sentinels", "settings", "broker"),
    [
        ("sentinel://h1:1,h2/yard", [("h1", 1), ("h2", 26379)], {"db": 0},
         "sentinel://h1:1/0;sentinel://h2:26379/0"),
        ("sentinel://u:p%2C%40@[::1]:7/yard?db=3", [("::1", 7)],
         {"username": "u", "password": "p,@", "db": 3},
         "sentinel://u:p%2C%40@[::1]:7/3"),
        ("sentinel://:p@h/yard?sentinel_password=q&protocol=3", [("h", 26379)], {"password": "p"},
         "sentinel://:p@h:26379/0"),
    ],
)  # fmt: skip
def test_sentinels_are_asked_for_the_primary_of_a_service(
    url: str, sentinels: list[tuple[str, int]], settings: dict[str, Any], broker: str
) -> None:
    pool: Any = connect(url, socket_timeout=15.0, socket_keepalive=True).connection_pool
    asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]

    assert [(one["host"], one["port"]) for one in asked] == sentinels
    assert asked[0].get("password") == ("q" if "sentinel_password" in url else None)
    assert pool.service_name == "yard"
    assert pool.is_master
    assert pool.connection_kwargs.items() >= (settings | {"protocol": 2, "socket_timeout": 15.0}).items()
    assert pool.make_connection()
    assert RedisLink(url, 1.0).commands.connection_pool.make_connection()
    app = make_app(url)
    assert app.conf.broker_url == broker
    assert app.conf.broker_transport_options["master_name"] == "yard"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:6379", "is not a Redis URL: give e.g. redis://"),
        ("http://h/0", "is not a Redis URL: give e.g."),
        ("", "is not a Redis URL"),
        ("redis://:sec#ret@h/0", "percent-encode what is special in user and password .* # is %23"),
        ("redis://:sec/ret@h/0", "/ is %2F"),
        ("redis://:sec?ret@h/0", r"\\? is %3F"),
        ("redis://:sec[ret@h/0", "percent-encode"),
        ("redis://:secret@h:63x9/0", "no port that is a number"),
        ("redis://:secret", "no port that is a number"),
        ("redis://h:70000/0", "from 1 to 65535"),
        ("redis://h/first", "a database that is not a number"),
        ("redis://h/0?db=first", "correct the values of its options"),
        ("redis://h/0?ssl=true", "the option ssl, .* begin with rediss://"),
        ("redis://h/0?ssl_cert_reqs=none", "begin with rediss://"),
        ("rediss://h/0?ssl_cert_req=none", "the option ssl_cert_req"),
        ("unix://", "names no socket"),
        ("sentinel://:secret@h1,h2", "names no service after its hosts: give e.g. sentinel://"),
        ("sentinel://:secret@h1:1/yard/0", "names no service"),
        ("sentinel://:secret@h1:70000,h2/yard", "no port that is a number from 1 to 65535"),
        ("sentinel://h1,,h2/yard", "or an odd host"),
        ("sentinel://h/yard?db=first", "a database that is not a number"),
        ("sentinel://:sec/ret@h/yard", "percent-encode what is special in user and password"),
        ("sentinel://h/yard?ssl_cert_reqs=none", "the option ssl_cert_reqs, which is not honoured there"),
        (7, "a int is not a Redis URL"),
    ],
)
def test_a_url_that_cannot_be_read_is_told_with_the_remedy_and_without_its_password(
    url: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        valid_redis_url(url)
    with pytest.raises(Unavailable, match=re.escape(str(raised.value))) as refused:
        Client(url)

    assert "sec" not in str(raised.value)
    assert refused.value.__suppress_context__
    assert refused.value.__cause__ is None

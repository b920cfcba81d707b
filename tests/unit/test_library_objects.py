"""Library objects have values that we chose: made in one place of their room, and looked at here alive."""

from __future__ import annotations

import ast
import asyncio
import re
import socket
from typing import Any, Final, NamedTuple

import pytest
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel

from db import Database
from lorayard.local.ports import free_port
from lorayard.server.celery_app import RECONNECTS, make_app
from lorayard.server.flower import GuardedFlower
from lorayard.transport.connections import (
    MAX_CONNECTIONS,
    for_blocking_reads,
    for_commands,
    for_probe,
    for_service,
)
from tests.unit.test_threads import written
from workers.pool import TaskPool
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.connections import GuardedTransport
from workers.webhooks.outbox import Outbox

REDIS: Final = "redis://h:1/0"


class Kind(NamedTuple):
    """What is called, by a pattern for the call as it is written, and the files that may."""

    called: str
    files: frozenset[str]


KINDS: Final = {
    "clients of Redis": Kind(
        r"(.*\.)?(Strict)?(Redis|RedisCluster|Sentinel|(Blocking|Sentinel)?ConnectionPool)(\.from_\w+)?",
        frozenset({"lorayard/transport/redis_url.py", "lorayard/transport/sentinel.py"}),
    ),
    "what a client of Redis waits for and how often it tries": Kind(
        r"connect|redis_url\.connect|(.*\.)?Retry",
        frozenset({"lorayard/transport/connections.py", "lorayard/transport/sentinel.py"}),
    ),
    "engines of SQLAlchemy": Kind(
        r"(.*\.)?(async_)?(create_(async_)?(engine|pool_from_url)|engine_from_config)",
        frozenset({"db/database.py"}),
    ),
    "connections to Postgres beside them: the question whether one answers": Kind(
        r"psycopg\w*\..*(connect|Pool)", frozenset({"lorayard/local/postgres_server.py"})
    ),
    "HTTP clients: webhooks, and the question whether Flower answers": Kind(
        r"httpx\.(Client|AsyncClient|(Async)?HTTPTransport|get|post|put|request|stream|head|delete)"
        r"|httpcore\.\w*(Pool|Connection|Proxy)|(.*\.)?(urlopen|urlretrieve|HTTPS?Connection|GuardedTransport)",
        frozenset(
            {"lorayard/local/services.py", "workers/webhooks/connections.py", "workers/webhooks/sender.py"}
        ),
    ),
    "Celery applications, and connections of kombu": Kind(
        r"(celery\.)?Celery|kombu\.(connection\.)?Connection|(.*\.)?BrokerConnection",
        frozenset({"lorayard/server/celery_app.py"}),
    ),
    "executors, each with its number of threads": Kind(
        r"(.*\.)?(Thread|Process|Interpreter)PoolExecutor",
        frozenset(
            {
                "kernels/cpu/build.py",
                "lorayard/client/threads.py",
                "lorayard/local/child.py",
                "workers/pool.py",
                "workers/webhooks/outbox.py",
            }
        ),
    ),
    "the event loop's own executor, whose threads nobody counted": Kind(
        r"(.*\.)?(to_thread|set_default_executor)", frozenset()
    ),
    "names looked up on the caller's thread": Kind(
        r"(.*\.)?(getaddrinfo|gethostby\w+|create_connection|open_connection)", frozenset()
    ),
}

UNBOUNDED_CACHES: Final = {
    "kernels/cards.py": "one entry a card",
    "kernels/cpu/library.py": "one entry",
    "kernels/linear/linear.py": "one entry a kind of processor",
    "kernels/linear/quantized_weight.py": "one entry a format and device",
    "lorayard/contract/request.py": "one entry",
    "lorayard/contract/trusted.py": "one entry a model",
    "workers/engine/lora/loading/child.py": "one entry",
    "workers/engine/sampling/logit_edits.py": "one entry a device",
}


def test_each_kind_is_made_in_the_files_that_chose_its_values() -> None:
    calls = [(file, ast.unparse(node.func)) for file, node in written() if isinstance(node, ast.Call)]

    for what, kind in KINDS.items():
        made = {file for file, called in calls if re.fullmatch(kind.called, called)}
        assert made == kind.files, f"{what}: made in {sorted(made)}"


def test_no_part_of_the_pipeline_waits_for_a_lock_or_holds_one_without_a_bound() -> None:
    makers = {"Database", "Database.from_settings"}
    made = [
        (file, {word.arg for word in node.keywords})
        for file, node in written()
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in makers
        and file.split("/")[0] in ("scheduler", "workers", "db")
        and file != "db/migrate.py"  # has limits of its own
    ]

    assert len(made) == 7
    assert [file for file, named in made if "lock_timeout_ms" not in named] == []


def test_no_executor_is_the_loops_own_or_without_a_bound() -> None:
    for file, node in written():
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.endswith("run_in_executor"):
            assert ast.unparse(node.args[0]) != "None", file
        if called.endswith("PoolExecutor"):
            assert node.args or any(word.arg == "max_workers" for word in node.keywords), file


def test_no_cache_is_without_a_bound_or_with_one_that_nobody_chose() -> None:
    unbounded = set()
    for file, node in written():
        for decorator in map(ast.unparse, getattr(node, "decorator_list", ())):
            if re.fullmatch(r"(functools\.)?cache", decorator):
                unbounded.add(file)
            assert not re.fullmatch(r"(functools\.)?lru_cache(\((maxsize=None)?\))?", decorator), file

    assert unbounded == set(UNBOUNDED_CACHES)


@pytest.mark.parametrize(
    "written_there",
    ["redis.Redis(host=h)", "Redis.from_url(u)", "redis.asyncio.Redis()", "ConnectionPool()",
     "psycopg.connect(u)", "create_engine(u)", "sa.create_engine(u)", "httpx.Client()", "httpx.AsyncClient()",
     "httpx.post(u)", "urllib.request.urlopen(u)", "Celery('x')", "kombu.Connection(u)",
     "ThreadPoolExecutor()", "concurrent.futures.ThreadPoolExecutor(3)", "asyncio.to_thread(f)",
     "socket.getaddrinfo(h, 1)", "socket.create_connection(a)", "Retry(b, 3)",
     "connect(url, socket_timeout=1)"],
)  # fmt: skip
def test_a_bare_constructor_elsewhere_is_found(written_there: str) -> None:
    call = ast.parse(written_there).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    called = ast.unparse(call.value.func)

    assert any(re.fullmatch(kind.called, called) for kind in KINDS.values())


@pytest.mark.parametrize(
    ("client", "read_s", "connect_s", "health_s", "num_retries", "retried"),
    [
        (for_commands(REDIS, 5.0), 5.0, 5.0, 0, 3, ["ConnectionError"]),
        (for_blocking_reads(REDIS, 7.0, 5.0), 7.0, 5.0, 0, 0, []),
        (for_blocking_reads(REDIS, 0.5, 5.0), 0.5, 0.5, 0, 0, []),
        (for_service(REDIS), 15.0, 5.0, 25, 0, []),
        (for_probe(REDIS), 1.0, 1.0, 0, 0, []),
    ],
)
def test_clients_of_redis(
    client: Any, read_s: float, connect_s: float, health_s: int, num_retries: int, retried: list[str]
) -> None:
    connection = client.connection_pool.make_connection()

    assert client.connection_pool.max_connections == MAX_CONNECTIONS
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (read_s, connect_s)
    assert connection.health_check_interval == health_s
    assert connection.retry.get_retries() == num_retries
    assert [one.__name__ for one in connection.retry._supported_errors] == retried
    assert not connection.retry_on_timeout
    assert connection.socket_keepalive
    assert connection.socket_keepalive_options[socket.TCP_KEEPIDLE] == 10
    assert connection.protocol == 2
    assert not connection.encoder.decode_responses


def test_the_celery_application() -> None:
    app = make_app(REDIS)
    with app.connection_for_write() as connection:
        sockets = connection.transport_options

        assert {name for name in sockets if not hasattr(Channel, name)} == {"max_retries", *RECONNECTS}
        assert (sockets["socket_timeout"], sockets["socket_connect_timeout"]) == (15.0, 5.0)
        assert sockets["socket_keepalive_options"][socket.TCP_KEEPIDLE] == 10
        assert (sockets["health_check_interval"], sockets["max_connections"]) == (25, 10)
        assert not sockets["retry_on_timeout"]
        assert connection.connect_timeout == 5.0
        assert connection._extract_failover_opts() == {"timeout": 5.0, "max_retries": 2, **RECONNECTS}
    assert app.pool.limit == 10
    assert app.conf.broker_channel_error_retry
    assert app.conf.broker_connection_max_retries is None
    assert not app.conf.worker_cancel_long_running_tasks_on_connection_loss
    assert app.conf.accept_content == ["json"]
    app.close()


def test_the_broker_is_tried_again_each_second_for_as_long_as_it_is_away() -> None:
    app = make_app(f"redis://127.0.0.1:{free_port()}/0")
    pauses: list[float] = []

    def note(_error: Exception, pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise ArithmeticError

    with app.connection_for_read() as connection:
        with pytest.raises(ArithmeticError):
            connection.ensure_connection(note)  # as Celery's consumer does
        with pytest.raises(OperationalError):  # as whoever sends events does, and returns soon
            _ = connection.default_channel

    assert pauses == pytest.approx([0.1, 0.3, 0.5])
    app.close()


def test_flowers_threads() -> None:
    assert GuardedFlower.max_workers == 4


def test_the_ledgers_engine() -> None:
    database = Database("postgresql://h/d", pool_size=3)
    pool: Any = database._engine.pool

    assert (pool.size(), pool._max_overflow, pool.timeout(), pool._recycle) == (3, 0, 30, -1)
    assert not pool._pre_ping  # what was idle for a second is pinged, by a listener
    assert [one.__name__ for one in pool.dispatch.checkin] == ["rest"]
    assert [one.__name__ for one in pool.dispatch.checkout] == ["begin"]
    assert database._engine.get_execution_options() == {}
    assert database._engine.dialect._on_connect_isolation_level == "AUTOCOMMIT"
    assert database._engine._compiled_cache is not None
    assert [function.__name__ for function in database._engine.dialect.dispatch.do_connect] == ["connect"]


async def _webhook_connections() -> Any:
    return GuardedTransport(AddressPolicy(()), 7)._pool


def test_the_relays_connections_and_threads() -> None:
    pool = asyncio.run(_webhook_connections())
    database = Database("postgresql://h/d")
    outbox = Outbox(database, database, 10.0)

    assert (pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry) == (7, 7, 15.0)
    assert pool._ssl_context.verify_mode.name == "CERT_REQUIRED"
    assert (outbox._lease_thread._max_workers, outbox._ledger_threads._max_workers) == (1, 5)


def test_the_threads_of_the_workers_side_tasks() -> None:
    assert TaskPool(1)._side._max_workers == 2

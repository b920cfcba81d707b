"""Redis and Postgres start fast, keep their data and their port, and find a port when one is taken."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from structlog.testing import capture_logs

from lorayard.local import SERVERS, ChildFailed, PortUnavailable, Stack, StackConfig
from lorayard.local.child import Child
from lorayard.local.environment import inherited_environment
from lorayard.local.errors import LocalStackError
from lorayard.local.external import checked_redis_url
from lorayard.local.ports import LOOPBACK, free_port
from lorayard.local.postgres_server import PostgresServer, plain_url, select_refusal
from lorayard.local.redis_server import RedisServer
from lorayard.process.environment import BAD_ENVIRONMENT
from lorayard.process.server_check import require_usable_redis

_ONCE = Retry(NoBackoff(), 0)
Down = Callable[[Stack, str], object]


@pytest.fixture(scope="module", params=[True, False], ids=["durable", "fast"])
def standing(new_state_dir: Callable[[], Path], request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Servers that tests look at and leave as they are."""
    with Stack(StackConfig(state_dir=new_state_dir(), parts=SERVERS, durable=request.param)) as stack:
        yield stack


@pytest.fixture
def stack(state_dir: Path) -> Iterator[Stack]:
    """Servers for one test to stop and kill, with the settings that save the most work."""
    with Stack(StackConfig(state_dir=state_dir, parts=SERVERS, durable=False)) as stack:
        yield stack


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((LOOPBACK, free_port())) as listener:
        yield listener.getsockname()[1]


def query(stack: Stack, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(plain_url(stack.postgres.url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_both_servers_come_up_and_answer(state_dir: Path) -> None:
    with Stack(StackConfig(state_dir=state_dir, parts=SERVERS)) as stack:
        with redis.Redis.from_url(stack.redis.url) as client:
            assert client.ping()
        assert query(stack, "SELECT 1") == [(1,)]


def test_redis_runs_with_the_settings_that_jobs_rely_on(standing: Stack) -> None:
    with redis.Redis.from_url(standing.redis.url) as client:
        settings = client.config_get("*")

    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == ("everysec" if standing.config.durable else "no")
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["databases"] == "64"
    assert settings["bind"] == LOOPBACK
    assert f"pubsub {256 << 20} {128 << 20} 60" in settings["client-output-buffer-limit"]


def test_a_redis_that_may_evict_jobs_is_refused_and_one_that_may_evict_replies_warned_of(
    servers: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    url = servers.redis.url
    told = "it may evict accepted jobs .maxmemory-policy allkeys-lru.: set maxmemory-policy noeviction"
    with redis.Redis.from_url(url) as client, capture_logs() as logs:
        try:
            client.execute_command("ACL", "SETUSER", "default", "-info")
            require_usable_redis("scheduler", checked_redis_url(url))
            client.execute_command("ACL", "SETUSER", "default", "+info")
            client.config_set("maxmemory-policy", "volatile-lru")
            require_usable_redis("scheduler", checked_redis_url(url))
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(LocalStackError, match=f"cannot be used .{told}"):
                checked_redis_url(url)
            with pytest.raises(SystemExit) as ended:
                require_usable_redis("scheduler", url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.execute_command("ACL", "SETUSER", "default", "+info")

    said = capsys.readouterr().err
    assert ended.value.code == BAD_ENVIRONMENT
    assert re.fullmatch(rf"scheduler: the Redis at redis://:\*\*\*@.* cannot be used: {told}\n", said)
    assert [line["event"] for line in logs] == ["redis.may_evict", "redis.may_evict"]
    assert "let Lorayard's user run INFO" in logs[0]["warning"]


def test_postgres_runs_with_the_settings_that_the_ledger_relies_on(standing: Stack) -> None:
    assert query(standing, "SHOW fsync") == [("on" if standing.config.durable else "off",)]
    assert query(standing, "SHOW synchronous_commit") == [("on",)]
    assert query(standing, "SHOW server_encoding") == [("UTF8",)]
    assert query(standing, "SHOW listen_addresses") == [(LOOPBACK,)]


def test_both_servers_refuse_a_wrong_password(standing: Stack) -> None:
    with (
        redis.Redis(host=LOOPBACK, port=standing.redis.port, password="wrong", retry=_ONCE) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://lorayard:wrong@{LOOPBACK}:{standing.postgres.port}/postgres")


@pytest.mark.parametrize("down", [Stack.stop_part, Stack.kill], ids=["stopped", "killed"])
def test_redis_keeps_its_data_and_its_address_over_a_restart(stack: Stack, down: Down) -> None:
    url, pid = stack.redis.url, stack.children["redis"].pid
    with redis.Redis.from_url(url) as client:
        client.xadd("jobs", {"prompt": "hello"}, id="1-0")

    down(stack, "redis")
    stack.restart("redis")

    assert stack.redis.url == url
    assert stack.children["redis"].pid != pid
    with redis.Redis.from_url(url) as client:
        assert client.xrange("jobs") == [(b"1-0", {b"prompt": b"hello"})]


@pytest.mark.parametrize("down", [Stack.stop_part, Stack.kill], ids=["stopped", "killed"])
def test_postgres_keeps_its_data_and_its_address_over_a_restart(stack: Stack, down: Down) -> None:
    url, pid = stack.postgres.url, stack.children["postgres"].pid
    query(stack, "CREATE TABLE jobs (id int)")
    query(stack, "INSERT INTO jobs VALUES (7)")

    down(stack, "postgres")
    stack.restart("postgres")

    assert stack.postgres.url == url
    assert stack.children["postgres"].pid != pid
    assert query(stack, "SELECT id FROM jobs") == [(7,)]


def test_postgres_restarts_while_a_client_is_connected(stack: Stack) -> None:
    with psycopg.connect(plain_url(stack.postgres.url)) as connection:
        connection.execute("SELECT 1")
        stack.restart("postgres")

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")

    assert query(stack, "SELECT 1") == [(1,)]


def test_data_outlives_the_stack_and_serves_the_next_one(state_dir: Path) -> None:
    config = StackConfig(state_dir=state_dir, parts=SERVERS)
    with Stack(config) as stack:
        query(stack, "CREATE TABLE kept (id int)")
        with redis.Redis.from_url(stack.redis.url) as client:
            client.set("kept", "yes")

    with Stack(config) as stack:
        assert query(stack, "SELECT count(*) FROM kept") == [(0,)]
        with redis.Redis.from_url(stack.redis.url) as client:
            assert client.get("kept") == b"yes"


def test_redis_tries_another_port_when_the_chosen_one_is_taken(tmp_path: Path, taken_port: int) -> None:
    ports = iter([taken_port, free_port()])
    env = inherited_environment()
    server = RedisServer(tmp_path, tmp_path / "log", Child, env=env, choose_port=lambda: next(ports))
    server.start()

    try:
        assert server.port != taken_port
        assert server.is_ready()
    finally:
        server.stop()


def test_postgres_tries_another_port_when_the_chosen_one_is_taken(state_dir: Path, taken_port: int) -> None:
    state_dir.mkdir(mode=0o711)
    ports = iter([taken_port, free_port()])
    env = inherited_environment()
    server = PostgresServer(state_dir, state_dir / "log", Child, env=env, choose_port=lambda: next(ports))
    server.start()

    try:
        assert server.port != taken_port
        assert server.is_ready()
    finally:
        server.stop()


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_that_names_it(
    tmp_path: Path, taken_port: int
) -> None:
    env = inherited_environment()
    server = RedisServer(tmp_path, tmp_path / "log", Child, env=env, port=taken_port)

    with pytest.raises(PortUnavailable, match=f"{LOOPBACK}:{taken_port}"):
        server.start()


def test_a_data_folder_that_postgres_refuses_fails_with_its_words(state_dir: Path) -> None:
    config = StackConfig(state_dir=state_dir, parts=SERVERS, durable=False)
    with Stack(config) as stack:
        [(data,)] = query(stack, "SHOW data_directory")
    (Path(str(data)) / "PG_VERSION").write_text("9.1\n")

    with pytest.raises(ChildFailed, match=r"(?s)postgres .*exited with status 1.*incompatible with server"):
        Stack(config).start()


def test_a_postgres_that_refuses_says_why(servers: Stack) -> None:
    url = servers.postgres.url
    user, _, place = url.rpartition("@")
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        connection.execute("CREATE ROLE few LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
        refusals = {
            "does not exist": select_refusal(f"{user}@{place.rpartition('/')[0]}/nowhere"),
            "too many connections": select_refusal(f"postgresql://few:x@{place}"),
            "SSL": select_refusal(f"{url}?sslmode=require"),
        }
        connection.execute("DROP ROLE few")

    assert all(words in (refusal or "") for words, refusal in refusals.items()), refusals
    assert select_refusal(url) is None

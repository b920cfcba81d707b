"""A Redis and a Postgres with a replica each: sentinels promote the one, the test the other."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from redis import RedisError

from lorayard.local.binaries import find_redis_server
from lorayard.local.child import Child, ChildSpec
from lorayard.local.environment import inherited_environment
from lorayard.local.ports import LOOPBACK, free_port
from lorayard.local.postgres_server import PostgresServer, plain_url
from lorayard.local.private_files import write_private
from lorayard.local.redis_server import RedisServer
from lorayard.transport.redis_url import connect
from tests.polling import eventually

SERVICE = "yard"


class ReplicatedRedis:
    """Two Redis servers and one sentinel, which is a majority of itself."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._env = inherited_environment()
        self.primary, self.replica = (
            RedisServer(_with_password(folder / name), folder / f"{name}.log", Child, env=self._env)
            for name in ("first", "second")
        )
        for server in (self.primary, self.replica):
            server.start()
            stack.callback(server.kill)
        with connect(self.replica.url) as client:
            client.config_set("masterauth", _PASSWORD)
            client.execute_command("REPLICAOF", LOOPBACK, self.primary.port)
        eventually(lambda: self._role().get("master_link_status") == "up", 30.0, "the replica of Redis")
        self._port = free_port()
        stack.callback(self._sentinel(folder).kill)
        self.url = f"sentinel://:{_PASSWORD}@{LOOPBACK}:1,{LOOPBACK}:{self._port}/{SERVICE}"
        """The first sentinel is down for good: the next one is asked."""
        eventually(self._knows_both, 30.0, "the sentinel's knowledge")

    def lose_primary(self) -> None:
        """Kill the primary, and return once the other one has been promoted."""
        self.primary.kill()
        eventually(lambda: self._role().get("role") == "master", 30.0, "the promotion of Redis")

    def _sentinel(self, folder: Path) -> Child:
        config = folder / "sentinel.conf"
        settings = [
            f"bind {LOOPBACK}",
            f"port {self._port}",
            f"dir {folder}",
            f"sentinel monitor {SERVICE} {LOOPBACK} {self.primary.port} 1",
            f"sentinel auth-pass {SERVICE} {_PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 5000",
        ]
        write_private(config, "".join(f"{line}\n" for line in settings))
        argv = (str(find_redis_server()), str(config), "--sentinel")
        return Child(ChildSpec(name="sentinel", argv=argv, log_path=folder / "sentinel.log", env=self._env))

    def _knows_both(self) -> bool:
        with connect(f"redis://{LOOPBACK}:{self._port}") as client:
            try:
                replicas: Any = client.execute_command("SENTINEL", "REPLICAS", SERVICE)
            except RedisError:
                return False
            return len(replicas) == 1

    def _role(self) -> dict[str, Any]:
        """Ask the replica what it is; a server that becomes another thing cuts its clients off."""
        with connect(self.replica.url) as client:
            try:
                found: dict[str, Any] = client.info("replication")
            except RedisError:
                return {}
            return found


class ReplicatedPostgres:
    """Two Postgres servers; what the primary confirms is on the other as well."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        env = inherited_environment()
        homes = [folder / "first", folder / "second"]
        for home in homes:
            home.mkdir(mode=0o711)
        self.primary = PostgresServer(homes[0], folder / "first.log", Child, env=env, durable=False)
        self.primary.start()
        stack.callback(self.primary.kill)
        shutil.copy(homes[0] / "postgres_password", homes[1])
        self.replica = PostgresServer(homes[1], folder / "second.log", Child, env=env, durable=False)
        self._copy()
        self.replica.start()
        stack.callback(self.replica.kill)
        self._ask(self.primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        eventually(lambda: self._ask(self.primary, synchronous), 30.0, "the replica of Postgres")
        base, at, _ = plain_url(self.primary.url).rpartition("@")
        places = ",".join(f"{LOOPBACK}:{server.port}" for server in (self.primary, self.replica))
        self.url = f"{base}{at}{places}/postgres"

    def lose_primary(self) -> None:
        """Kill the primary and promote the other one."""
        self.primary.kill()
        self._ask(self.replica, "SELECT pg_promote()")

    def count(self, query: str) -> int:
        """Ask the promoted server for a number."""
        ((number,),) = self._ask(self.replica, query)
        return int(number)

    def _copy(self) -> None:
        home = self.replica._home
        program = home.binaries.postgres.with_name("pg_basebackup")
        data = home.folder / "data"
        url = plain_url(self.primary.url)
        words = [str(program), "-D", str(data), "-d", url, "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        if home.user is not None:
            for path in (data, *data.rglob("*")):
                os.chown(path, *home.user, follow_symlinks=False)

    def _ask(self, server: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(plain_url(server.url), autocommit=True) as connection:
            for statement in statements:
                found = connection.execute(statement)
            return found.fetchall() if found.description else []


_PASSWORD = "of-both-servers"


def _with_password(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    write_private(folder / "password", _PASSWORD)
    return folder


@contextmanager
def replicated_servers(folder: Path) -> Iterator[tuple[ReplicatedRedis, ReplicatedPostgres]]:
    """Start all five servers; they end with the block."""
    with ExitStack() as stack:
        for name in ("redis", "postgres"):
            (folder / name).mkdir(mode=0o711, parents=True)
        yield ReplicatedRedis(folder / "redis", stack), ReplicatedPostgres(folder / "postgres", stack)

"""Runs redis-server in the foreground with its append-only file on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import redis

from lorayard.local.binaries import find_redis_server
from lorayard.local.child import ChildSpec
from lorayard.local.part import Server, Spawn
from lorayard.local.ports import LOOPBACK, free_port
from lorayard.local.private_files import new_password, read_or_create, write_private
from lorayard.transport.connections import for_probe
from lorayard.transport.refusals import explained
from lorayard.transport.server_check import look_at

_DATABASES = 64
# Redis' own chores a second (default 10), and so how exactly an idle read ends: ours wait for 0.5 s and more.
_HZ = 5
# Redis' default of 8 MB for 60 s cuts off Flower in a burst of task events (seen with 160,000 of them).
_PUBSUB_BUFFER_LIMIT = "256mb 128mb 60"


class RedisServer(Server):
    """One Redis on loopback; a restart on the same folder finds what was written."""

    def __init__(
        self,
        folder: Path,
        log_path: Path,
        spawn: Spawn,
        *,
        env: Mapping[str, str],
        durable: bool = True,
        port: int | None = None,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        super().__init__("redis", spawn, port=port, choose_port=choose_port)
        self._program = find_redis_server()
        self._folder = folder
        self._log_path = log_path
        self._env = env
        self._durable = durable
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._password = read_or_create(folder / "password", new_password)

    @property
    def url(self) -> str:
        """The server's address, password included, for database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """The server's address for one of its 64 logical databases."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def is_ready(self) -> bool:
        """Tell whether the server answers PING."""
        return answers_ping(self.url)

    def _spec(self) -> ChildSpec:
        # In a private file and not in the arguments, which every user of the machine can read.
        config = self._folder / "redis.conf"
        write_private(config, self._config())
        return ChildSpec(
            name=self.name,
            argv=(str(self._program), str(config)),
            log_path=self._log_path,
            env=self._env,
            cwd=self._folder,
        )

    def _config(self) -> str:
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "requirepass": self._password,
            "daemonize": "no",
            "databases": str(_DATABASES),
            "hz": str(_HZ),
            "dir": f'"{self._folder}"',
            "appendonly": "yes",
            # What a reply confirmed survives a SIGKILL either way; fsync is for the machine's own crash.
            "appendfsync": "everysec" if self._durable else "no",
            "save": '""',
            "client-output-buffer-limit": f"pubsub {_PUBSUB_BUFFER_LIMIT}",
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())


def answers_ping(url: str) -> bool:
    """Whether a Redis at `url` has its data loaded and accepts our password."""
    return ping_refusal(url) is None


def ping_refusal(url: str) -> str | None:
    """Return why a Redis at `url` cannot be used, with the remedy; None if it answers. Raises ValueError."""
    with for_probe(url) as client:
        try:
            client.ping()
            refusal = look_at(client).refusal
        except redis.RedisError as error:
            return explained(error)
    return refusal

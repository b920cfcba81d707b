"""Builds each part of a stack from its configuration and registers whatever it starts."""

from __future__ import annotations

import time
from collections.abc import Callable

from lorayard.local import services
from lorayard.local.child import ChildSpec
from lorayard.local.config import StackConfig
from lorayard.local.errors import LocalStackError
from lorayard.local.external import checked_database_url, checked_redis_url
from lorayard.local.postgres_server import PostgresServer
from lorayard.local.private_files import new_key, new_password, read_or_create
from lorayard.local.redis_server import RedisServer
from lorayard.local.registry import ChildRegistry
from lorayard.local.state import StateDirectory

_STOP_GRACE_S = 10.0
# A worker needs a moment after its drain: for the last commits, its lease and Celery's own shutdown.
_FLUSH_S = 25.0


class Assembly:
    """A held state directory with the processes that were started on it."""

    def __init__(self, config: StackConfig, pause: Callable[[float], None] = time.sleep) -> None:
        self._config = config
        self._redis_url = checked_redis_url(config.redis_url) if config.redis_url else None
        self._database_url = checked_database_url(config.database_url) if config.database_url else None
        self.state = StateDirectory(config.state_dir)
        self.registry = ChildRegistry(self.state, pause)

    def close(self) -> None:
        """Kill what still runs and let the state directory go."""
        try:
            self.registry.close()
        finally:
            self.state.release()

    def start_redis(self) -> RedisServer | None:
        """Start Redis and return it; None if the configuration names another."""
        if self._redis_url is not None:
            return None
        server = RedisServer(
            self.state.path / "redis",
            self.state.log_path("redis"),
            self.registry.spawn,
            env=self._config.inherited_env,
            durable=self._config.durable,
        )
        server.start()
        self._redis_url = server.url
        return server

    def start_postgres(self) -> PostgresServer | None:
        """Start Postgres and return it; None if the configuration names another."""
        if self._database_url is not None:
            return None
        server = PostgresServer(
            self.state.path,
            self.state.log_path("postgres"),
            self.registry.spawn,
            env=self._config.inherited_env,
            durable=self._config.durable,
        )
        server.start()
        self._database_url = server.url
        return server

    def migrate(self) -> None:
        """Bring the database to the newest schema; raise ChildFailed with the log's end if that fails."""
        spec = ChildSpec(
            name="migrate",
            argv=services.MIGRATE,
            log_path=self.state.log_path("migrate"),
            env=services.service_environment(self._config, self.addresses()),
        )
        self.registry.spawn(spec).finish(self._config.start_timeout_s)

    def scheduler(self) -> services.Service:
        """Build, without starting it, the scheduler."""
        return self._service("scheduler", services.SCHEDULER, {}, _STOP_GRACE_S)

    def relay(self) -> services.Service:
        """Build, without starting it, the webhook relay."""
        return self._service("relay", services.RELAY, {}, _STOP_GRACE_S)

    def worker(self, number: int) -> services.Service:
        """Build, without starting it, the n-th worker, from 1; raises CardsUnavailable."""
        own_env = {
            **services.worker_environment(self._config, number),
            "LORAYARD_SPILL_DIR": str((self.state.path / "spill").resolve()),
        }
        stop_grace_s = self._config.drain_grace_s + _FLUSH_S
        return self._service(services.worker_name(number), services.WORKER, own_env, stop_grace_s)

    def flower(self) -> services.FlowerServer:
        """Build, without starting it, Flower."""
        return services.FlowerServer(
            self.registry.spawn,
            env=services.flower_environment(self._config, self.addresses()),
            password=read_or_create(self.state.path / "flower_password", new_password),
            log_path=self.state.log_path("flower"),
            port=self._config.flower_port,
            start_timeout_s=self._config.start_timeout_s,
        )

    def addresses(self) -> services.Addresses:
        """Where the servers of this stack are, and what its processes share."""
        if self._redis_url is None or self._database_url is None:
            raise LocalStackError(
                "Lorayard's processes need a Redis and a Postgres: put both into the stack's parts, or give "
                "the addresses of running ones"
            )
        path = self.state.path
        return services.Addresses(
            redis_url=self._redis_url,
            database_url=self._database_url,
            adapter_store=(self._config.adapter_store or path / "adapters").resolve(),
            secret_key=self._config.secret_key or read_or_create(path / "secret_key", new_key),
        )

    def _service(
        self, name: str, argv: tuple[str, ...], own_env: dict[str, str], stop_grace_s: float
    ) -> services.Service:
        return services.Service(
            name,
            argv,
            self.registry.spawn,
            env={**services.service_environment(self._config, self.addresses()), **own_env},
            log_path=self.state.log_path(name),
            ready_path=self.state.ready_path(name),
            start_timeout_s=self._config.start_timeout_s,
            stop_grace_s=stop_grace_s,
        )

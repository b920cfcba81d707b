"""Declares Lorayard's own processes: what runs each, with which environment, and when it serves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from lorayard.local.cards import HIDDEN, VISIBLE
from lorayard.local.child import ChildSpec
from lorayard.local.config import StackConfig
from lorayard.local.part import Part, Server, Spawn
from lorayard.local.ports import LOOPBACK
from workers.engine.core.processors import num_processors

_PYTHON = (sys.executable, "-m")
MIGRATE = (*_PYTHON, "db.migrate")
SCHEDULER = (*_PYTHON, "scheduler")
WORKER = (*_PYTHON, "workers")
RELAY = (*_PYTHON, "workers.webhooks")
FLOWER = (*_PYTHON, "lorayard.server.flower")
WORKER_PREFIX = "worker-"
_FLOWER_USER = "lorayard"
# The addresses given here are complete; what belongs to other servers may be in the caller's environment.
_OF_OTHER_SERVERS = {
    f"LORAYARD_{name}": ""
    for name in (
        "REDIS_PASSWORD",
        "REDIS_PASSWORD_FILE",
        "DATABASE_PASSWORD",
        "DATABASE_PASSWORD_FILE",
        "DATABASE_DIRECT_URL",
    )
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the processes find each other, and the key that they share."""

    redis_url: str = field(repr=False)
    database_url: str = field(repr=False)
    adapter_store: Path
    secret_key: str = field(repr=False)


class Service(Part):
    """A process of ours that touches a file once it serves."""

    def __init__(
        self,
        name: str,
        argv: tuple[str, ...],
        spawn: Spawn,
        *,
        env: Mapping[str, str],
        log_path: Path,
        ready_path: Path,
        start_timeout_s: float,
        stop_grace_s: float,
    ) -> None:
        super().__init__(name, spawn, start_timeout_s=start_timeout_s, stop_grace_s=stop_grace_s)
        self._argv = argv
        self._env = {**env, "LORAYARD_READY_FILE": str(ready_path)}
        self._log_path = log_path
        self._ready_path = ready_path

    def is_ready(self) -> bool:
        """Tell whether the process has written its ready file."""
        return self._ready_path.exists()

    def _spec(self) -> ChildSpec:
        self._ready_path.unlink(missing_ok=True)  # an earlier run's
        return ChildSpec(name=self.name, argv=self._argv, log_path=self._log_path, env=self._env)


class FlowerServer(Server):
    """Flower on loopback, for whoever knows its password: other users of the machine reach it as well."""

    def __init__(
        self,
        spawn: Spawn,
        *,
        env: Mapping[str, str],
        password: str,
        log_path: Path,
        port: int | None,
        start_timeout_s: float,
    ) -> None:
        super().__init__("flower", spawn, port=port, start_timeout_s=start_timeout_s)
        self._env = env
        self._password = password
        self._log_path = log_path

    @property
    def url(self) -> str:
        """The page's address on this machine, user and password included, as curl and httpx take it."""
        return f"http://{_FLOWER_USER}:{self._password}@{LOOPBACK}:{self.port}"

    def is_ready(self) -> bool:
        """Tell whether Flower's health check succeeds."""
        return answers_healthcheck(self.port)

    def _spec(self) -> ChildSpec:
        own = {
            "LORAYARD_FLOWER_USER": _FLOWER_USER,
            "LORAYARD_FLOWER_PASSWORD": self._password,
            "LORAYARD_FLOWER_ADDRESS": LOOPBACK,
            "LORAYARD_FLOWER_PORT": str(self.port),
        }
        return ChildSpec(name=self.name, argv=FLOWER, log_path=self._log_path, env={**self._env, **own})


def answers_healthcheck(port: int) -> bool:
    """Whether a Flower serves on a port of this machine, which it says to anybody."""
    with closing(HTTPConnection(LOOPBACK, port, timeout=2.0)) as connection:
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False


def client_environment(config: StackConfig, addresses: Addresses) -> dict[str, str]:
    """Return what producers and the `lorayard` command need to find this stack."""
    variables = {
        "LORAYARD_REDIS_URL": addresses.redis_url,
        "LORAYARD_DATABASE_URL": addresses.database_url,
        "LORAYARD_ADAPTER_STORE": str(addresses.adapter_store),
        "LORAYARD_SECRET_KEY": addresses.secret_key,
    }
    if config.model is not None:
        variables["LORAYARD_MODEL"] = str(config.model.resolve())
    # `adapters` names the pool and checks ranks and the base's name by these, as the workers do.
    limits = {
        "LORAYARD_DTYPE": config.dtype,
        "LORAYARD_GENERATION_CONFIG": config.generation_config,
        "LORAYARD_MAX_LORA_RANK": config.max_lora_rank,
        "LORAYARD_SERVED_MODEL_NAME": config.served_model_name,
    }
    return variables | {name: str(value) for name, value in limits.items() if value is not None}


def service_environment(config: StackConfig, addresses: Addresses) -> dict[str, str]:
    """Return the whole environment of Lorayard's own processes, but for what each has of its own.

    None of them sees a card: workers are given theirs by `worker_environment`.
    """
    limits = {
        "LORAYARD_MAX_NUM_SEQS": config.max_num_seqs,
        "LORAYARD_MAX_LORAS": config.max_loras,
        "LORAYARD_MAX_CPU_LORAS": config.max_cpu_loras,
        "LORAYARD_MAX_MODEL_LEN": config.max_model_len,
    }
    return {
        "OMP_NUM_THREADS": _threads_per_worker(config.num_workers),
        **config.inherited_env,
        **HIDDEN,
        **_OF_OTHER_SERVERS,
        "PYTHONUNBUFFERED": "1",
        **client_environment(config, addresses),
        "LORAYARD_WEBHOOK_ALLOW": config.webhook_allow,
        "LORAYARD_AUTO_TENANTS": str(config.auto_tenants).lower(),
        "LORAYARD_DRAIN_GRACE_S": f"{config.drain_grace_s:g}",
        **{name: str(value) for name, value in limits.items() if value is not None},
        **config.extra_env,
    }


def flower_environment(config: StackConfig, addresses: Addresses) -> dict[str, str]:
    """Return the environment of the one process that serves pages: of our secrets, it gets Redis' alone."""
    foreign = {
        name: value
        for name, value in config.inherited_env.items()
        if not name.startswith(("LORAYARD_", "FLOWER_")) and name not in ("REDIS_URL", "DATABASE_URL")
    }
    return {
        **foreign,
        **HIDDEN,
        "PYTHONUNBUFFERED": "1",
        "LORAYARD_REDIS_URL": addresses.redis_url,
        "LORAYARD_FLOWER_CONTROL": str(config.flower_control).lower(),
        "LORAYARD_FLOWER_MAX_TASKS": str(config.flower_max_tasks),
        **config.extra_env,
    }


def worker_environment(config: StackConfig, number: int) -> dict[str, str]:
    """Return what the n-th worker, from 1, has of its own: the name, and the card if there are any."""
    own = {"LORAYARD_WORKER_NAME": worker_name(number), "LORAYARD_DEVICE": "cpu"}
    if (card := config.card_of(number)) is not None:
        own |= {"LORAYARD_DEVICE": "cuda", VISIBLE: card}
    if config.gpu_memory_utilization is not None:
        own["LORAYARD_GPU_MEMORY_UTILIZATION"] = f"{config.gpu_memory_utilization:g}"
    return own


def worker_name(number: int) -> str:
    """Name the n-th worker, from 1, as stack, log and Flower do."""
    return f"{WORKER_PREFIX}{number}"


def _threads_per_worker(num_workers: int) -> str:
    """Share the cores out: torch would start one thread a core in each worker, and they would thrash."""
    return str(max(1, num_processors() // max(1, num_workers)))

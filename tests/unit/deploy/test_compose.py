"""The compose files as a real Compose implementation reads them; no container engine is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import make_url

from db.settings import DatabaseSettings
from lorayard.contract.addresses import with_password
from lorayard.local.binaries import find_redis_server
from lorayard.local.child import Child, ChildSpec
from lorayard.local.ports import free_port
from lorayard.local.redis_server import answers_ping
from lorayard.server.flower import FlowerSettings
from scheduler.settings import SchedulerSettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).parents[3]
SECRETS = {
    "POSTGRES_PASSWORD": "pg'\"$HOME ${X} #/@%41?:\\",
    "REDIS_PASSWORD": "redis'\"$HOME $$ `id` ${X} #/@%41?:\\x é",
    "LORAYARD_SECRET_KEY": "fernet-secret",
    "FLOWER_PASSWORD": "flower'\"$HOME, #/@%41?:\\",
    "LORAYARD_MODEL_DIR": "/models/base",
}


LAID_OVER = """
import asyncio, json, sys
import podman_compose
asyncio.run(podman_compose.async_main())
services = podman_compose.podman_compose.services
own = {name: {key: value[key] for key in value if key[0] != "_"} for name, value in services.items()}
print(json.dumps(own))
"""
"""Prints every service as it would run: `config` shows it before `extends` is obeyed."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """podman-compose asks for podman's version first, which a two-line script on this PATH answers."""
    folder = tmp_path_factory.mktemp("podman")
    engine = folder / "podman"
    engine.write_text("#!/bin/sh\necho 'podman version 5.0.0'\n")
    engine.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def config(path: str) -> Any:
    """Run `podman-compose config`."""

    def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            Path(sys.executable).with_name("podman-compose"),
            "-f",
            ROOT / "docker-compose.yml",
            "config",
        ]
        return subprocess.run(
            command, env={"PATH": path, **environment}, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def services(config: Any) -> dict[str, Any]:
    answer = config(SECRETS)
    assert answer.returncode == 0, answer.stderr
    loaded: dict[str, Any] = yaml.safe_load(answer.stdout)["services"]
    return loaded


@pytest.fixture(scope="module")
def on_cards(path: str) -> dict[str, Any]:
    """The services with docker-compose.gpu.yml laid over the file."""
    files: list[str | Path] = ["-f", ROOT / "docker-compose.yml", "-f", ROOT / "docker-compose.gpu.yml"]
    answer = subprocess.run(
        [sys.executable, "-c", LAID_OVER, *files, "config", "--quiet"],
        env={"PATH": path, **SECRETS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    loaded: dict[str, Any] = json.loads(answer.stdout)
    return loaded


def test_the_file_describes_the_whole_stack(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "postgres", "migrate", "scheduler", "worker", "webhooks", "flower"}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_has_a_default(config: Any, name: str) -> None:
    without = {key: value for key, value in SECRETS.items() if key != name}

    answer = config(without)

    assert answer.returncode != 0
    assert name in answer.stderr


KNOWN = {
    "redis": {"REDIS_PASSWORD"},
    "postgres": {"POSTGRES_PASSWORD"},
    "migrate": {"POSTGRES_PASSWORD"},
    "scheduler": {"REDIS_PASSWORD", "POSTGRES_PASSWORD", "LORAYARD_SECRET_KEY"},
    "worker": {"REDIS_PASSWORD", "POSTGRES_PASSWORD"},
    "webhooks": {"POSTGRES_PASSWORD", "LORAYARD_SECRET_KEY"},
    "flower": {"REDIS_PASSWORD", "FLOWER_PASSWORD"},
}
"""Which secrets each service needs."""


def test_a_service_is_given_the_secrets_that_it_needs_by_its_environment_alone(
    services: dict[str, Any],
) -> None:
    secrets = {name: value for name, value in SECRETS.items() if name != "LORAYARD_MODEL_DIR"}
    for service, described in services.items():
        values = list(described["environment"].values())
        assert {name for name, value in secrets.items() if value in values} == KNOWN[service], service
        others = json.dumps({key: value for key, value in described.items() if key != "environment"})
        assert not any(json.dumps(value)[1:-1] in others for value in secrets.values()), service


@pytest.mark.parametrize("service", ["migrate", "scheduler", "worker", "webhooks", "flower"])
def test_what_a_service_is_told_gives_the_passwords_as_they_were_written(
    services: dict[str, Any], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services[service]["environment"].items():
        monkeypatch.setenv(name, str(value))
    read = {
        "migrate": DatabaseSettings,
        "scheduler": SchedulerSettings,
        "worker": WorkerSettings,
        "webhooks": DatabaseSettings,
        "flower": FlowerSettings,
    }[service]()

    if (url := getattr(read, "redis_url", None)) is not None:
        told = Redis.from_url(url).connection_pool.connection_kwargs
        assert (told["password"], told["host"]) == (SECRETS["REDIS_PASSWORD"], "redis")
    if (url := getattr(read, "database_url", None)) is not None:
        ledger = make_url(url.get_secret_value() if isinstance(url, SecretStr) else url)
        assert (ledger.password, ledger.host) == (SECRETS["POSTGRES_PASSWORD"], "postgres")
    if isinstance(read, FlowerSettings):
        assert read.password == SECRETS["FLOWER_PASSWORD"]
        assert read.flower_hosts == ("127.0.0.1", "localhost", "::1")


ENTRYPOINT = """#!/bin/sh
exec "$@" --port "$PORT" --bind 127.0.0.1 --dir "$FOLDER"
"""
"""Stands where the image has its own, which changes the user and runs what it is given."""


def test_redis_starts_by_the_command_with_the_password_in_no_argument(
    services: dict[str, Any], tmp_path: Path
) -> None:
    program = find_redis_server()
    (tmp_path / "docker-entrypoint.sh").write_text(ENTRYPOINT)
    (tmp_path / "docker-entrypoint.sh").chmod(0o755)
    port = free_port()
    env = {
        "PATH": f"{tmp_path}:{program.parent}:{os.environ['PATH']}",
        "PORT": str(port),
        "FOLDER": str(tmp_path),
        **services["redis"]["environment"],
    }
    spec = ChildSpec("redis", ("/bin/sh", *services["redis"]["command"][1:]), tmp_path / "log", env)
    child = Child(spec)
    try:
        url = with_password(f"redis://127.0.0.1:{port}/0", SECRETS["REDIS_PASSWORD"])
        child.wait_ready(lambda: answers_ping(url), 30)
        assert not answers_ping(f"redis://127.0.0.1:{port}/0")
        with Redis.from_url(url, decode_responses=True) as client:
            assert client.config_get("append*")["appendonly"] == "yes"
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert "redis'" not in Path(f"/proc/{child.pid}/cmdline").read_text()
    finally:
        child.stop()


def test_the_example_tells_of_every_secret() -> None:
    named = {line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines()}

    assert set(SECRETS) <= named


def test_every_long_running_service_has_a_health_check(services: dict[str, Any]) -> None:
    for name in set(services) - {"migrate"}:
        assert services[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name


def test_a_service_of_ours_whose_settings_are_refused_stays_but_the_migration_ends(
    services: dict[str, Any],
) -> None:
    ours = ("scheduler", "worker", "webhooks", "flower")
    assert {services[name]["environment"]["LORAYARD_HOLD_REFUSED"] for name in ours} == {"true"}
    assert services["migrate"]["command"] == ["python", "-m", "db.migrate"]  # which asks for no such thing


def test_a_ready_file_is_gone_whenever_its_container_starts(services: dict[str, Any]) -> None:
    for name in ("scheduler", "worker", "webhooks"):
        ready_file = Path(services[name]["environment"]["LORAYARD_READY_FILE"])
        assert str(ready_file.parent) in services[name]["tmpfs"], name
        assert services[name]["healthcheck"]["test"] == ["CMD", "test", "-f", str(ready_file)], name


def test_redis_keeps_an_append_only_file_on_a_volume(services: dict[str, Any]) -> None:
    assert "appendonly yes" in services["redis"]["command"][2]
    assert "redis-data:/data" in services["redis"]["volumes"]
    assert "postgres-data:/var/lib/postgresql" in services["postgres"]["volumes"]


def test_nothing_reserves_a_card_and_the_worker_runs_on_the_cpu(services: dict[str, Any]) -> None:
    assert not any("deploy" in service for service in services.values())
    assert "LORAYARD_DEVICE" not in services["worker"]["environment"]


def test_each_worker_of_the_overlay_has_a_card_of_its_own(on_cards: dict[str, Any]) -> None:
    workers = {name: one for name, one in on_cards.items() if "deploy" in one}
    reserved = {name: one["deploy"]["resources"]["reservations"]["devices"] for name, one in workers.items()}

    assert reserved == {
        "worker": [{"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}],
        "worker-1": [{"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}],
    }
    assert {one["environment"]["LORAYARD_DEVICE"] for one in workers.values()} == {"cuda"}
    assert [one["environment"]["LORAYARD_WORKER_NAME"] for one in workers.values()] == [
        "worker-0",
        "worker-1",
    ]


def test_the_overlay_changes_nothing_but_the_workers(
    services: dict[str, Any], on_cards: dict[str, Any]
) -> None:
    worker, other = dict(on_cards["worker"]), dict(on_cards["worker-1"])
    told = {"LORAYARD_DEVICE", "LORAYARD_WORKER_NAME", "LORAYARD_GPU_MEMORY_UTILIZATION"}

    assert set(on_cards) == set(services) | {"worker-1"}
    for own in (worker, other):
        environment = own.pop("environment")
        assert set(environment) - set(services["worker"]["environment"]) == told
        assert {name: environment[name] for name in environment if name not in told} == (
            services["worker"]["environment"]
        )
    for key in (
        "command",
        "image",
        "healthcheck",
        "volumes",
        "tmpfs",
        "stop_grace_period",
        "shm_size",
        "restart",
    ):
        assert worker[key] == other[key] == services["worker"][key], key
    for own in (worker, other):
        assert own["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_nothing_starts_before_the_ledger_is_migrated(services: dict[str, Any]) -> None:
    for name in ("scheduler", "worker", "webhooks"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully", name
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy", name


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("service", ["migrate", "scheduler", "worker", "webhooks", "flower"])
def test_every_process_is_a_module_of_this_repository(services: dict[str, Any], service: str) -> None:
    module = services[service]["command"][2]

    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_the_dockerfile_copies_every_package_it_installs() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()

    for package in ("lorayard", "scheduler", "workers", "kernels", "db"):
        assert f"COPY {package} {package}" in dockerfile

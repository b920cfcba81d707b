"""docker-compose.yml as a real Compose implementation reads it; no container engine is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SECRETS = {
    "POSTGRES_PASSWORD": "pg-secret",
    "REDIS_PASSWORD": "redis-secret",
    "LORAYARD_SECRET_KEY": "fernet-secret",
    "FLOWER_BASIC_AUTH": "user:flower-secret",
    "LORAYARD_MODEL_DIR": "/models/base",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run `podman-compose config`; it asks for podman's version first, which a two-line script answers."""
    folder = tmp_path_factory.mktemp("podman")
    engine = folder / "podman"
    engine.write_text("#!/bin/sh\necho 'podman version 5.0.0'\n")
    engine.chmod(0o755)

    def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            Path(sys.executable).with_name("podman-compose"),
            "-f",
            ROOT / "docker-compose.yml",
            "config",
        ]
        path = f"{folder}:{os.environ['PATH']}"
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


def test_the_file_describes_the_whole_stack(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "postgres", "migrate", "scheduler", "worker", "webhooks", "flower"}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_has_a_default(config: Any, name: str) -> None:
    without = {key: value for key, value in SECRETS.items() if key != name}

    answer = config(without)

    assert answer.returncode != 0
    assert name in answer.stderr


def test_every_long_running_service_has_a_health_check(services: dict[str, Any]) -> None:
    for name in set(services) - {"migrate"}:
        assert services[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name


def test_redis_keeps_an_append_only_file_on_a_volume(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]

    assert command[command.index("--appendonly") + 1] == "yes"
    assert "redis-data:/data" in services["redis"]["volumes"]
    assert "postgres-data:/var/lib/postgresql" in services["postgres"]["volumes"]


def test_only_the_worker_reserves_a_gpu(services: dict[str, Any]) -> None:
    device = services["worker"]["deploy"]["resources"]["reservations"]["devices"][0]

    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert not any("deploy" in service for name, service in services.items() if name != "worker")


def test_nothing_starts_before_the_ledger_is_migrated(services: dict[str, Any]) -> None:
    for name in ("scheduler", "worker", "webhooks"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully", name
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy", name


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("service", ["migrate", "scheduler", "worker", "webhooks"])
def test_every_process_is_a_module_of_this_repository(services: dict[str, Any], service: str) -> None:
    module = services[service]["command"][2]

    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_the_dockerfile_copies_every_package_it_installs() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()

    for package in ("lorayard", "scheduler", "workers", "kernels", "db"):
        assert f"COPY {package} {package}" in dockerfile

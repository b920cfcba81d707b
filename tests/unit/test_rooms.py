"""Each root name is ours: nothing installed may stand in front of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["lorayard", "scheduler", "workers", "kernels", "db"])
def test_a_root_name_belongs_to_this_repository(name: str) -> None:
    spec = find_spec(name)

    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    assert set(packages_distributions().get(name, ["lorayard"])) == {"lorayard"}


def test_what_a_producer_installs_names_neither_torch_nor_the_ledger() -> None:
    plain = [line for line in requires("lorayard") or [] if "extra ==" not in line]

    assert plain
    assert not any(
        name in line.lower() for line in plain for name in ("torch", "sqlalchemy", "celery", "psycopg")
    )


def test_control_processes_load_none_of_what_they_do_not_use() -> None:
    """The light image of deploy/Dockerfile has no torch; ORM and client are 17 MB in each process."""
    modules = ["scheduler.process", "workers.webhooks.relay", "workers.app", "db.migrate"]
    unwanted = "{'torch', 'sqlalchemy.orm', 'lorayard.client'}"
    asked = [f"import {one}; print({one!r}, *({unwanted} & sys.modules.keys()))" for one in modules]

    told = subprocess.check_output(
        [sys.executable, "-c", "\n".join(["import sys", *asked])], cwd=ROOT, text=True
    )

    assert told.splitlines() == modules


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "workers.launch",
            "torch numpy tokenizers safetensors llguidance jinja2 triton kernels sqlalchemy.orm",
        ),
        ("workers.engine.lora.loading.process", "tokenizers llguidance jinja2 triton structlog"),
    ],
)
def test_processes_around_an_engine_load_none_of_what_they_do_not_use(module: str, unwanted: str) -> None:
    """They start sooner without, and hold less memory."""
    code = f"import sys, {module}; print(*sys.modules)"

    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)

    assert set(loaded.split()).isdisjoint(unwanted.split())

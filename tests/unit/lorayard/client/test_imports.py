"""A producer pays for what a producer needs, and for nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lorayard
from lorayard.contract import errors

_REPORT = "import {module}, sys; print([name for name in {forbidden} if name in sys.modules])"
FORBIDDEN = ("torch", "sqlalchemy", "psycopg", "celery", "kombu", "numpy", "transformers", "db", "workers")


@pytest.mark.parametrize("module", ["lorayard", "lorayard.cli"])
def test_importing_loads_nothing_that_only_servers_need(module: str) -> None:
    code = _REPORT.format(module=module, forbidden=FORBIDDEN)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.strip() == "[]"


def test_importing_the_package_loads_no_command_line_and_no_http() -> None:
    forbidden = ("typer", "rich", "structlog", "httpx", "lorayard.cli")
    code = _REPORT.format(module="lorayard", forbidden=forbidden)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.strip() == "[]"


def test_every_error_that_a_producer_can_meet_is_exported() -> None:
    public = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LorayardError)
    }

    assert "QueueFull" in public
    assert {name: getattr(lorayard, name, None) for name in public} == public
    assert public.keys() <= set(lorayard.__all__)


def test_every_exported_name_exists() -> None:
    assert [name for name in lorayard.__all__ if not hasattr(lorayard, name)] == []


_BLOCKED = """
import sys
for name in {forbidden}:
    sys.modules[name] = None
import lorayard
lorayard.Client("redis://127.0.0.1:1/0").close()
print(lorayard.Client.__name__)
"""


def test_a_client_works_where_nothing_else_is_installed() -> None:
    code = _BLOCKED.format(forbidden=FORBIDDEN)

    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ran.returncode, ran.stdout.strip()) == (0, "Client"), ran.stderr

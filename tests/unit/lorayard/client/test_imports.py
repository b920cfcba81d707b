"""A producer pays for what a producer needs, and for nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

_REPORT = "import {module}, sys; print([name for name in {forbidden} if name in sys.modules])"
FORBIDDEN = ("torch", "sqlalchemy", "psycopg", "celery", "kombu", "numpy", "transformers", "db", "workers")


@pytest.mark.parametrize("module", ["lorayard", "lorayard.cli"])
def test_importing_loads_nothing_that_only_servers_need(module: str) -> None:
    code = _REPORT.format(module=module, forbidden=FORBIDDEN)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.strip() == "[]"


_BLOCKED = """
import sys
for name in {forbidden}:
    sys.modules[name] = None
import lorayard
lorayard.Client("redis://127.0.0.1:1/0").close()
print(sorted(lorayard.__all__)[0])
"""


def test_a_client_works_where_nothing_else_is_installed() -> None:
    code = _BLOCKED.format(forbidden=FORBIDDEN)

    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ran.returncode, ran.stdout.strip()) == (0, "Client"), ran.stderr

"""Every process looks at its servers before it serves, and says in one sentence what is wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import redis

from db.secrets import new_key
from lorayard.local import Stack, plain_url
from lorayard.process.environment import BAD_ENVIRONMENT

ROOT = Path(__file__).parents[3]

# In one interpreter, since importing them is what takes the time.
START_ALL = """
import sys
from importlib import import_module
for module in ("scheduler.__main__", "workers.launch", "workers.webhooks.__main__", "lorayard.server.flower"):
    if module not in sys.argv[1:]:
        try:
            print(import_module(module).main())
        except SystemExit as end:
            print(end.code)
"""


def test_all_processes_refuse_servers_that_cannot_keep_jobs(
    servers: Stack, redis_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LORAYARD_REDIS_URL": redis_url,
        "LORAYARD_DATABASE_URL": empty_database_url,
        "LORAYARD_MODEL": str(ROOT / "examples" / "tiny" / "base"),
        "LORAYARD_ADAPTER_STORE": str(tmp_path),
        "LORAYARD_SECRET_KEY": new_key(),
        "LORAYARD_FLOWER_USER": "u",
        "LORAYARD_FLOWER_PASSWORD": "p",
    }

    def start(*left_out: str) -> tuple[list[str], list[str]]:
        command = [sys.executable, "-c", START_ALL, *left_out]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        said = [line for line in ended.stderr.splitlines() if "cannot be used" in line]
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stdout.split(), said

    with psycopg.connect(plain_url(empty_database_url), autocommit=True) as ledger:
        ledger.execute("CREATE TABLE alembic_version AS SELECT 'd259a9bca9e7' AS version_num")
    foreign, about_ledger = start("lorayard.server.flower")
    with redis.Redis.from_url(servers.redis.url) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lfu")
            evicting, about_redis = start("workers.webhooks.__main__")
        finally:
            client.config_set("maxmemory-policy", "noeviction")

    assert foreign == evicting == [str(BAD_ENVIRONMENT)] * 3
    assert [line.partition(":")[0] for line in about_ledger] == ["scheduler", "workers", "workers.webhooks"]
    assert all("give Lorayard a database of its own" in line for line in about_ledger)
    assert [line.partition(":")[0] for line in about_redis] == [
        "scheduler",
        "workers",
        "lorayard.server.flower",
    ]
    assert all("set maxmemory-policy noeviction" in line for line in about_redis)

"""Prepares a running stack for the demo: the shipped adapters, and the tenants' webhook secrets."""

from __future__ import annotations

import time
from pathlib import Path

from db import Database
from db.repositories.tenants import TenantRepository
from db.secrets import SecretBox
from examples.demo.workload import ADAPTERS_DIR, MODEL_DIR, TENANTS
from examples.tiny.tasks import TASKS
from lorayard import Client, UnknownPool
from lorayard.cli.adapter_store import AdapterStore, PoolOfAdapters, add_adapters
from lorayard.contract.pool import pool_id
from lorayard.local import StackConfig
from workers.engine.lora import describe_base
from workers.engine.lora.loading import LoadSpec

MAX_RANK = 16


def stack_config(state_dir: Path) -> StackConfig:
    """Describe a stack on the tiny model with two CPU workers and fewer slots than adapters."""
    return StackConfig(
        state_dir=state_dir,
        model=MODEL_DIR,
        dtype="float32",
        num_workers=2,
        max_num_seqs=32,
        max_loras=4,
        max_cpu_loras=8,
        max_lora_rank=MAX_RANK,
        max_model_len=512,
    )


def add_shipped_adapters(database: Database, env: dict[str, str]) -> None:
    """Do what `lorayard adapters add` does, for every shipped adapter."""
    dtype = env["LORAYARD_DTYPE"]
    pool = PoolOfAdapters(pool_id(MODEL_DIR, dtype), LoadSpec(describe_base(MODEL_DIR), MAX_RANK, dtype))
    store = AdapterStore(Path(env["LORAYARD_ADAPTER_STORE"]))
    list(add_adapters(database, store, pool, [(name, ADAPTERS_DIR / name) for name in TASKS]))


def await_catalogue(client: Client, within_s: float = 30.0) -> None:
    """Wait until the scheduler has mirrored the adapters: a client refuses names that it does not know."""
    deadline = time.monotonic() + within_s
    while missing := set(TASKS) - set(_served(client)):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not in the catalogue within {within_s:g} s: {', '.join(sorted(missing))}")
        time.sleep(0.05)


def _served(client: Client) -> list[str]:
    try:
        return client.adapters()
    except UnknownPool:
        return []  # the scheduler does not lead yet


def webhook_secrets(database: Database, env: dict[str, str]) -> dict[str, str]:
    """Make each tenant with a secret, and return the secrets as its receiver would be told them."""
    box = SecretBox([env["LORAYARD_SECRET_KEY"]])
    with database.transaction() as connection:
        tenants = TenantRepository(connection)
        for name in TENANTS:
            tenants.ensure(name, box.seal_new)
        return {name: box.decrypt(tenants.webhook_secrets(name)[0]) for name in TENANTS}

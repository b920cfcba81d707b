"""Runs a stack for the demo and prepares it: adapters, and the tenants' webhook secrets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from db import Database
from db.repositories.tenants import TenantRepository
from db.secrets import SecretBox
from examples.demo.workload import ADAPTERS_DIR, MODEL_DIR, TENANTS
from examples.tiny.tasks import TASKS
from lorayard import Client, UnknownPool
from lorayard.cli.adapter_store import AdapterStore, PoolOfAdapters
from lorayard.cli.adapter_store import add_adapters as add_to_pool
from lorayard.contract.pool import pool_id
from lorayard.local import Stack, StackConfig
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


@contextmanager
def running(stack: Stack, console: Console) -> Iterator[Stack]:
    """Keep a stack up for the time of the block, saying what happens."""
    with console.status(f"starting {', '.join(sorted(stack.config.parts))} …"):
        stack.start()
    try:
        yield stack
    finally:
        with console.status("stopping: workers drain first, servers go last …"):
            stack.stop()


def add_shipped_adapters(database: Database, env: dict[str, str]) -> None:
    """Do what `lorayard adapters add` does, for every shipped adapter."""
    folders = {name: ADAPTERS_DIR / name for name in TASKS}
    add_adapters(database, env, folders, model=MODEL_DIR, max_rank=MAX_RANK)


def add_adapters(
    database: Database, env: dict[str, str], folders: Mapping[str, Path], *, model: Path, max_rank: int
) -> None:
    """Do what `lorayard adapters add` does, for each name and folder."""
    dtype = env["LORAYARD_DTYPE"]
    pool = PoolOfAdapters(pool_id(model, dtype), LoadSpec(describe_base(model), max_rank, dtype))
    store = AdapterStore(Path(env["LORAYARD_ADAPTER_STORE"]))
    list(add_to_pool(database, store, pool, list(folders.items())))


def await_catalogue(client: Client, names: Iterable[str] = TASKS, within_s: float = 30.0) -> None:
    """Wait until the scheduler has mirrored the adapters: a client refuses names that it does not know."""
    deadline = time.monotonic() + within_s
    while missing := set(names) - set(_served(client)):
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

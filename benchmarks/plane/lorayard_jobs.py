"""Lorayard with everything on: jobs from one producer through scheduler and worker to their results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from benchmarks.plane.stack import MODEL, Machine
from db import Database
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from lorayard import Client, as_completed
from lorayard.contract.pool import pool_id

NUM_ADAPTERS: Final = 8
TENANT: Final = "default"
BLOCK_JOBS: Final = 1000
"""Jobs of one call of `submit_many`."""

RESULT_TIMEOUT_S: Final = 900.0
WORKER: Final = {"LORAYARD_MAX_NUM_SEQS": "256", "LORAYARD_MAX_LORAS": str(NUM_ADAPTERS)}
POOL: Final = pool_id(MODEL, "float32")


def jobs(number: int) -> list[dict[str, Any]]:
    """Describe jobs of one token, spread over the adapters."""
    return [
        {
            "prompt": f"Write a haiku about the number {n} and all of its friends.",
            "adapter": f"adapter-{n % NUM_ADAPTERS}",
            "max_tokens": 1,
            "tenant": TENANT,
        }
        for n in range(number)
    ]


def add_adapters(database_url: str) -> None:
    """Enter the adapters into the ledger; nobody reads their files."""
    database = Database(database_url)
    for number in range(NUM_ADAPTERS):
        revision = RevisionRow(f"sha256:{number:064x}", 8, ("q_proj",), 1000)
        database.run(
            lambda c, n=number, r=revision: AdapterRepository(c).add_revision(POOL, f"adapter-{n}", r)  # type: ignore[misc]
        )
    database.dispose()


@contextmanager
def serving(machine: Machine, *, batch: int, flower: bool = True, is_warm: bool = True) -> Iterator[Client]:
    """Run a scheduler that sends micro-batches of so many jobs, and a worker; yields a warm client."""
    scheduler = {"LORAYARD_MAX_BATCH_JOBS": str(batch)}
    if not flower:
        scheduler["LORAYARD_MAX_FLOWER_EVENTS_PER_S"] = "1"
    with machine.only():
        machine.spawn("scheduler", "scheduler", environment=scheduler)
        machine.spawn("worker", "benchmarks.plane.instant_worker", environment=WORKER)
        with Client(machine.redis_url) as client:
            if is_warm:
                # The reply stream is read from here on, and every adapter has been asked for once.
                for handle in client.submit_many(jobs(8 * NUM_ADAPTERS)):
                    handle.result(RESULT_TIMEOUT_S)
            yield client


def run(client: Client, number: int) -> float:
    """Submit jobs and wait for all results; returns the seconds it took."""
    described = iter(jobs(number))
    started = time.perf_counter()
    handles = []
    while block := list(islice(described, BLOCK_JOBS)):
        handles += client.submit_many(block)
    for handle in as_completed(handles, timeout=RESULT_TIMEOUT_S):
        assert handle.result().completion_tokens == 1
    return time.perf_counter() - started

"""A worker of a second ledger on one Redis says so and ends: no leader would ever send it a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pytest

from db import Database
from db.repositories.terms import TermRepository
from lorayard.contract.keys import PoolKeys
from lorayard.contract.pool import pool_id
from lorayard.process.environment import BAD_ENVIRONMENT
from lorayard.transport.connections import for_service
from tests.integration.workers.worker_process import WorkerProcess
from tests.polling import eventually
from workers.commands import CommandReader
from workers.engine_host import EngineHost
from workers.foreign_ledger import foreign_ledger

if TYPE_CHECKING:
    from lorayard.local import Stack

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def own_ledger(rig: Stack) -> UUID:
    database = Database(rig.postgres.url, pool_size=1)
    try:
        return database.run(lambda connection: TermRepository(connection).ledger_id())
    finally:
        database.dispose()


def test_a_worker_whose_pool_is_another_ledgers_ends_before_it_loads_a_model(
    rig: Stack, start_worker: StartWorker, model: Path, own_ledger: UUID
) -> None:
    pool, other = pool_id(model, "float32", generation_config="none"), uuid4()
    with for_service(rig.redis.url) as redis:
        redis.set(PoolKeys(pool).ledger, str(other))

        with start_worker(generation_config="none") as worker:
            assert worker.process.wait(90) == BAD_ENVIRONMENT

    said = worker.log_path.read_text()
    assert (
        f"pool {pool} in this Redis belongs to the ledger {other}, and this worker's is {own_ledger}" in said
    )
    assert "lorayard ledger adopt" in said
    assert "engine.started" not in said


def test_a_pool_that_another_ledger_takes_lets_its_workers_go(rig: Stack, own_ledger: UUID) -> None:
    pool, told, broken = uuid4().hex[:16], cast("list[str]", []), cast("list[str]", [])
    with for_service(rig.redis.url) as redis:
        reader = CommandReader(
            redis,
            PoolKeys(pool).commands("mine"),
            cast("EngineHost", cast("Any", None)),
            on_drain=lambda: None,
            why_foreign=lambda: foreign_ledger(redis, pool, own_ledger),
            on_foreign=told.append,
            on_broken=broken.append,
        )
        assert foreign_ledger(redis, pool, own_ledger) is None  # nobody's yet
        redis.set(PoolKeys(pool).ledger, str(own_ledger))
        reader.start()
        redis.set(PoolKeys(pool).ledger, str(uuid4()))

        eventually(lambda: told, what="the refusal")
        reader.close()

    assert len(told) == 1
    assert broken == []

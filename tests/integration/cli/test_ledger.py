"""`lorayard ledger adopt` hands pools over."""

from __future__ import annotations

from uuid import uuid4

import pytest
import redis

from db import Database
from db.repositories.terms import TermRepository
from lorayard.contract.keys import PoolKeys
from tests.integration.cli.conftest import Command
from tests.integration.db.ledger import POOL


def test_a_ledger_adopts_its_pools_and_says_from_whom(
    lorayard: Command, database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAYARD_REDIS_URL", redis_url)
    no_pool = lorayard("ledger", "adopt")
    database.run(lambda c: TermRepository(c).take(POOL, "leader", 60.0))
    ours, other = database.run(lambda c: TermRepository(c).ledger_id()), uuid4()

    with redis.Redis.from_url(redis_url) as client:
        nobody = lorayard("ledger", "adopt")
        client.set(PoolKeys(POOL).ledger, str(other))
        adopted = lorayard("ledger", "adopt")
        stored = client.get(PoolKeys(POOL).ledger)
    again = lorayard("ledger", "adopt")

    assert (no_pool.status, "no scheduler has run" in no_pool.err) == (1, True)
    assert f"{POOL}: no ledger has it" in nobody.out
    assert f"{POOL}: taken over from the ledger {other}" in adopted.out
    assert stored == str(ours).encode()
    assert f"{POOL}: of this ledger already" in again.out

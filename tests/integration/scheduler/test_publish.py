"""What clients can read in Redis without asking anyone."""

from __future__ import annotations

from typing import Any, cast

from db.repositories.adapters import AdapterRepository
from lorayard.client import Client
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.messages import CatalogueEntry
from lorayard.contract.pool import PoolInfo
from lorayard.contract.states import JobState
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.integration.scheduler.yard import Yard
from tests.polling import eventually


def figures(yard: Yard) -> dict[str, float]:
    """Read the admission figures."""
    fields = cast("dict[bytes, bytes]", yard.redis.hgetall(yard.keys.admission))
    return {name.decode(): float(value) for name, value in fields.items()}


def names(yard: Yard) -> list[str]:
    """Read which adapters are mirrored."""
    rows = cast("dict[bytes, bytes]", yard.redis.hgetall(yard.keys.catalogue))
    return sorted(CatalogueEntry.model_validate_json(row).name for row in rows.values())


def test_the_pool_is_introduced_with_the_limits_of_its_model(yard: Yard) -> None:
    with yard.scheduler(max_model_len=512):
        row: Any = eventually(lambda: yard.redis.hget(POOLS_KEY, yard.pool))

    info = PoolInfo.model_validate_json(row)
    assert info.max_model_len == 512
    assert info.max_prompt_bytes >= 512
    assert info.model_name == "lorayard/tiny"


def test_the_room_left_follows_the_backlog(yard: Yard) -> None:
    with yard.scheduler(max_backlog=10):
        eventually(lambda: figures(yard).get("ledger_room") == 10)
        yard.submit(4)
        eventually(lambda: figures(yard)["ledger_room"] == 6)
        first = figures(yard)["published_ms"]
        eventually(lambda: figures(yard)["published_ms"] > first)

    assert figures(yard)["retry_after_s"] >= 1.0


def test_the_catalogue_is_mirrored_again_when_it_changes_and_when_redis_forgot_it(yard: Yard) -> None:
    yard.add_adapter("one")
    with yard.scheduler():
        eventually(lambda: names(yard) == ["one"])

        yard.add_adapter("two")
        eventually(lambda: names(yard) == ["one", "two"])

        yard.database.run(lambda c: AdapterRepository(c).remove(yard.pool, "one"))
        eventually(lambda: names(yard) == ["two"])

        yard.redis.flushdb()
        eventually(lambda: names(yard) == ["two"])
        eventually(lambda: yard.redis.hget(POOLS_KEY, yard.pool))


def test_usage_is_folded_into_hours(yard: Yard) -> None:
    with ScriptedWorker(yard):
        with yard.scheduler():
            yard.wait_for(JobState.SUCCEEDED, *yard.submit(3))
        # Taking office, a leader tidies at once.
        with yard.scheduler():
            eventually(lambda: yard.sql("SELECT 1 FROM adapter_usage WHERE jobs = 3"))

    assert not yard.sql("SELECT 1 FROM usage_deltas")


def test_the_client_library_gets_its_results_through_this_leader(yard: Yard) -> None:
    yard.add_adapter("sql")
    with yard.scheduler(), ScriptedWorker(yard), Client(yard.redis_url) as client:
        eventually(lambda: names(yard) == ["sql"])
        handles = [client.submit(prompt=f"p{n}", adapter="sql", confirm="ledger") for n in range(5)]

        assert [handle.result(timeout=20.0).output for handle in handles] == [f"P{n}" for n in range(5)]

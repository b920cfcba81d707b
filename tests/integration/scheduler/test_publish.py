"""What clients can read in Redis without asking anyone."""

from __future__ import annotations

from typing import Any, cast

import pytest

from db.repositories.adapters import AdapterRepository
from lorayard.client import Client
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.messages import CatalogueEntry
from lorayard.contract.pool import PoolInfo
from lorayard.contract.states import JobState
from scheduler import catalogue_mirror
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.polling import eventually


def figures(rig: PoolRig) -> dict[str, float]:
    """Read the admission figures."""
    fields = cast("dict[bytes, bytes]", rig.redis.hgetall(rig.keys.admission))
    return {name.decode(): float(value) for name, value in fields.items()}


def names(rig: PoolRig) -> list[str]:
    """Read which adapters are mirrored."""
    rows = cast("dict[bytes, bytes]", rig.redis.hgetall(rig.keys.catalogue))
    return sorted(CatalogueEntry.model_validate_json(row).name for row in rows.values())


def test_the_pool_is_introduced_with_the_limits_of_its_model(rig: PoolRig) -> None:
    with rig.scheduler(max_model_len=512):
        row: Any = eventually(lambda: rig.redis.hget(POOLS_KEY, rig.pool))

    info = PoolInfo.model_validate_json(row)
    assert info.max_model_len == 512
    assert info.max_prompt_bytes >= 512
    assert info.model_name == "lorayard/tiny"


def test_the_room_left_follows_the_backlog(rig: PoolRig) -> None:
    with rig.scheduler(max_backlog=10):
        eventually(lambda: figures(rig).get("ledger_room") == 10)
        rig.submit(4)
        eventually(lambda: figures(rig)["ledger_room"] == 6)
        first = figures(rig)["published_ms"]
        eventually(lambda: figures(rig)["published_ms"] > first)

    assert figures(rig)["retry_after_s"] >= 1.0


def test_the_catalogue_is_mirrored_again_when_it_changes_and_when_redis_forgot_it(rig: PoolRig) -> None:
    rig.add_adapter("one")
    with rig.scheduler():
        eventually(lambda: names(rig) == ["one"])

        rig.add_adapter("two")
        eventually(lambda: names(rig) == ["one", "two"])

        rig.database.run(lambda c: AdapterRepository(c).remove(rig.pool, "one"))
        eventually(lambda: names(rig) == ["two"])

        rig.redis.flushdb()
        eventually(lambda: names(rig) == ["two"])
        eventually(lambda: rig.redis.hget(POOLS_KEY, rig.pool))


def test_an_adapter_that_is_added_is_written_alone_and_a_mirror_of_another_s_is_replaced(
    rig: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_mirror, "PART_ENTRIES", 2)
    for name in ("a", "b", "c", "d", "e"):
        rig.add_adapter(name)
    with rig.scheduler():
        eventually(lambda: names(rig) == ["a", "b", "c", "d", "e"])
        stray = rig.redis.hget(rig.keys.catalogue, "a")
        rig.redis.hset(rig.keys.catalogue, "stray", stray)

        rig.add_adapter("f")
        rig.database.run(lambda c: AdapterRepository(c).remove(rig.pool, "b"))
        eventually(lambda: names(rig) == ["a", "a", "c", "d", "e", "f"])
        version = rig.database.run(lambda c: AdapterRepository(c).version(rig.pool))
        eventually(lambda: figures(rig)["catalogue_version"] == version)

        rig.redis.hset(rig.keys.admission, "catalogue_version", 1)
        eventually(lambda: names(rig) == ["a", "c", "d", "e", "f"])
    assert not rig.redis.exists(rig.keys.next_catalogue)


def test_usage_is_folded_into_hours(rig: PoolRig) -> None:
    with ScriptedWorker(rig):
        with rig.scheduler():
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))
        # Taking context, a leader tidies at once.
        with rig.scheduler():
            eventually(lambda: rig.sql("SELECT 1 FROM adapter_usage WHERE jobs = 3"))

    assert not rig.sql("SELECT 1 FROM usage_deltas")


def test_the_client_library_gets_its_results_through_this_leader(rig: PoolRig) -> None:
    rig.add_adapter("sql")
    with rig.scheduler(), ScriptedWorker(rig), Client(rig.redis_url) as client:
        eventually(lambda: names(rig) == ["sql"])
        handles = [client.submit(prompt=f"p{n}", adapter="sql", confirm="ledger") for n in range(5)]

        assert [handle.result(timeout=20.0).output for handle in handles] == [f"P{n}" for n in range(5)]

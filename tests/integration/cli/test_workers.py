"""`lorayard workers` shows who serves, on what, and who cannot."""

from __future__ import annotations

import json

from db import Database
from db.records import StoreFailureRow, WorkerDevice
from db.repositories.leases import LeaseRepository
from db.repositories.store_failures import StoreFailureRepository
from db.repositories.workers import WorkerRepository
from tests.integration.cli.conftest import Command
from tests.integration.db.ledger import LIMITS, POOL

CARD = WorkerDevice("cuda:0", "NVIDIA H100 80GB HBM3", 85_029_158_912, "580.65.06", "2.11.0+cu130")


def register(
    database: Database, name: str, device: WorkerDevice | None, unhealthy: str | None = None
) -> None:
    database.run(
        lambda c: WorkerRepository(c).register(
            name, POOL, f"{name}@host", LIMITS, 60.0, device=device, unhealthy=unhealthy
        )
    )


def test_without_workers_it_says_how_to_start_some(lorayard: Command) -> None:
    assert lorayard("workers").out == (
        "no worker is registered: `lorayard up` or `python -m workers` starts some\n"
    )


def test_each_worker_is_shown_with_its_card(lorayard: Command, database: Database) -> None:
    register(database, "a", CARD)
    register(database, "b", WorkerDevice("cpu", torch_version="2.13.0+cpu"))
    register(database, "c", None)

    rows = [json.loads(line) for line in lorayard("workers", "--json").out.splitlines()]

    assert [row["worker"] for row in rows] == ["a@host", "b@host", "c@host"]
    assert rows[0].pop("lease_left_s") > 0
    assert rows[0] == {
        "worker": "a@host",
        "pool": POOL,
        "state": "ready",
        "device": "cuda:0",
        "card": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 85_029_158_912,
        "driver": "580.65.06",
        "torch": "2.11.0+cu130",
        "reason": None,
    }
    assert [(row["device"], row["card"], row["torch"]) for row in rows[1:]] == [
        ("cpu", None, "2.13.0+cpu"),
        (None, None, None),
    ]
    shown = lorayard("workers").out
    assert "85,029,158,912" in shown
    assert "NVIDIA H100" in shown


def test_an_unhealthy_worker_is_shown_with_its_reason_and_one_that_left_is_not(
    lorayard: Command, database: Database
) -> None:
    register(database, "ill", CARD, "its device failed 3 times")
    register(database, "left", CARD)
    register(database, "lost", CARD)
    database.run(lambda c: WorkerRepository(c).set_state("left", "gone"))
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE worker_leases SET expires_at = now() WHERE incarnation = 'lost'")
    database.run(lambda c: LeaseRepository(c).lose_worker("lost"))

    rows = [json.loads(line) for line in lorayard("workers", "--json").out.splitlines()]

    assert [(row["worker"], row["state"], row["reason"]) for row in rows] == [
        ("ill@host", "unhealthy", "its device failed 3 times")
    ]


def test_a_worker_whose_store_could_not_give_an_adapter_says_so(
    lorayard: Command, database: Database
) -> None:
    for name in ("a", "b"):
        database.run(
            lambda c, name=name: WorkerRepository(c).register(  # type: ignore[misc]
                name, POOL, f"{name}@host", LIMITS, 60.0, store=f"{name}:/store"
            )
        )
    failure = StoreFailureRow("r", "b:/store", "adapter_not_found", "no folder", 40.0, 4.0, 26.0, 30.0, 1)
    database.run(lambda c: StoreFailureRepository(c).keep(POOL, failure))

    rows = [json.loads(line) for line in lorayard("workers", "--json").out.splitlines()]

    assert [(row["worker"], row["state"]) for row in rows] == [("a@host", "ready"), ("b@host", "ready")]
    assert rows[0]["reason"] is None
    assert "b:/store could not give 1 adapter, the last" in rows[1]["reason"]
    assert "(adapter_not_found: no folder)" in rows[1]["reason"]


def test_a_worker_whose_hosts_engines_keep_dying_is_shown_as_a_canary(
    lorayard: Command, database: Database
) -> None:
    for name in ("first", "second", "third"):
        with database.transaction() as connection:
            workers = WorkerRepository(connection)
            workers.register(name, POOL, f"{name}@host", LIMITS, 60.0, host="h")
            if name != "third":
                workers.say_end(name, "engine_died")
                workers.set_state(name, "gone")
                LeaseRepository(connection).lose_worker(name)

    rows = [json.loads(line) for line in lorayard("workers", "--json").out.splitlines()]

    assert [(row["worker"], row["state"]) for row in rows] == [("third@host", "canary")]
    assert "died 2 times without one ended job, so it gets one job at a time" in rows[0]["reason"]

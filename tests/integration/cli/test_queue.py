"""`lorayard queue`, `pause`, `resume`, `tenants` and `workers drain`: what people say to the scheduler."""

from __future__ import annotations

import json
from typing import Any

import pytest

from db import Database
from db.repositories.pauses import PauseRepository
from db.repositories.tenants import TenantRepository
from db.repositories.workers import WorkerRepository
from tests.integration.cli.conftest import Command
from tests.integration.db.ledger import LIMITS, POOL, Ledger


def rows(lorayard: Command, *arguments: str) -> list[dict[str, Any]]:
    ran = lorayard(*arguments, "--json")
    assert ran.status == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def test_what_is_paused_is_shown_beside_what_waits_until_it_is_resumed(
    lorayard: Command, database: Database, database_url: str
) -> None:
    assert lorayard("queue").out == "no job is queued, nothing is paused\n"
    ledger = Ledger(database_url)
    ledger.worker()
    ledger.leased(tenant="acme")
    ledger.admitted(2, tenant="acme")
    ledger.admitted(1, tenant="other")
    ledger.database.dispose()
    database.run(lambda c: TenantRepository(c).ensure_all(["acme", "idle"]))

    assert lorayard("pause", "tenant", "acme").out == "tenant acme is paused\n"
    assert lorayard("pause", "tenant", "acme").out == "tenant acme was paused already\n"
    lorayard("pause", "tenant", "idle")
    lorayard("pause", "pool", "0123456789abcdef")

    found = rows(lorayard, "queue")
    assert [(row["tenant"], row["queued"], row["leased"], row["paused"]) for row in found] == [
        ("acme", 2, 1, "tenant acme"),
        ("other", 1, 0, None),
        (None, 0, 0, "pool 0123456789abcdef"),
        ("idle", 0, 0, "tenant idle"),
    ]
    assert found[0]["oldest_s"] >= 0
    assert found[2]["pool"] == "0123456789abcdef"

    assert lorayard("resume", "tenant", "acme").out == "tenant acme goes on\n"
    assert lorayard("resume", "pool", "0123456789abcdef").status == 0
    assert [row.name for row in database.run(lambda c: PauseRepository(c).all())] == ["idle"]


def test_an_adapter_paused_in_several_pools_is_resumed_in_the_one_that_is_told(
    lorayard: Command, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORAYARD_MODEL")
    for pool in ("a" * 16, "b" * 16):
        database.run(lambda c, pool=pool: PauseRepository(c).pause("adapter", pool, "sql"))  # type: ignore[misc]

    several = lorayard("resume", "adapter", "sql")
    one = lorayard("resume", "adapter", "sql", "--model", "b" * 16)

    assert several.status == 1
    assert f"paused in several pools, say in which one: --model {'a' * 16}, --model {'b' * 16}" in several.err
    assert one.out == "adapter sql goes on\n"
    assert [row.pool for row in database.run(lambda c: PauseRepository(c).all())] == ["a" * 16]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("pause", "tenant", "nobody"), "`lorayard tenants set nobody --new` to enter it"),
        (("pause", "adapter", "nothing"), "adapter"),
        (("resume", "tenant", "acme"), "tenant 'acme' is not paused: `lorayard queue` shows what is"),
        (("tenants", "set", "nobody"), "--new to enter this one"),
        (("workers", "drain", "nobody"), "no worker is named 'nobody'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_there_is_refused_with_what_to_do(
    lorayard: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    ran = lorayard(*arguments)

    assert (ran.status, ran.out) == (1, "")
    assert complaint in ran.err.replace("\n", " ")


def test_a_tenants_share_and_quotas_are_set_one_by_one(lorayard: Command) -> None:
    assert lorayard("tenants", "set", "acme", "--new", "--max-queued-jobs", "100").status == 0
    assert lorayard("tenants", "set", "acme", "--weight", "2.5", "--max-tokens-per-s", "50").out == (
        "acme: max_queued_jobs 100, max_tokens_per_s 50\n"
    )
    lorayard("tenants", "set", "acme", "--max-queued-jobs", "none")

    assert rows(lorayard, "tenants", "list") == [
        {
            "tenant": "acme",
            "weight": 2.5,
            "max_queued_jobs": None,
            "max_tokens_per_s": 50.0,
            "paused": False,
            "has_secret": False,
        }
    ]
    assert lorayard("tenants", "set", "acme", "--max-queued-jobs", "-1").status == 2
    assert lorayard("tenants", "set", "acme", "--max-tokens-per-s", "0").status == 2


def test_a_worker_is_drained_by_the_beginning_of_its_name_if_that_is_one_workers(
    lorayard: Command, database: Database
) -> None:
    for name in ("w-1", "w-2", "x"):
        database.run(
            lambda c, name=name: WorkerRepository(c).register(  # type: ignore[misc]
                name, POOL, f"{name}@host", LIMITS, 60.0, unhealthy="ill" if name == "x" else None
            )
        )

    assert (
        "may be several workers, say which one: w-1@host, w-2@host" in lorayard("workers", "drain", "w").err
    )
    assert "is unhealthy and has no jobs" in lorayard("workers", "drain", "x").err
    assert lorayard("workers", "drain", "w-2").out == (
        "w-2@host takes no more jobs, and ends once it holds none\n"
    )
    assert [(row["worker"], row["state"]) for row in rows(lorayard, "workers")] == [
        ("w-1@host", "ready"),
        ("w-2@host", "draining"),
        ("x@host", "unhealthy"),
    ]

"""Names move over revisions; a revision stays as long as a job may need it."""

from __future__ import annotations

import pytest
from alembic import command

from db.migrate import alembic_config
from db.records import RevisionRow, StoreFailureRow
from db.repositories.adapters import AdapterRepository
from db.repositories.store_failures import StoreFailureRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import POOL, Ledger, ended


def add(ledger: Ledger, name: str, digest: str) -> None:
    ledger.run(
        AdapterRepository, "add_revision", POOL, name, RevisionRow(digest, 8, ("q_proj", "v_proj"), 1000)
    )


def catalogue(ledger: Ledger) -> dict[str, tuple[str, str]]:
    return {
        entry.name: (entry.revision, entry.state)
        for entry in ledger.run(AdapterRepository, "catalogue", POOL)
    }


def version(ledger: Ledger) -> int:
    found: int = ledger.run(AdapterRepository, "version", POOL)
    return found


def test_each_change_raises_the_version(ledger: Ledger) -> None:
    assert version(ledger) == 0

    add(ledger, "sql", "r1")
    add(ledger, "sql", "r2")
    assert (catalogue(ledger), version(ledger)) == ({"sql": ("r2", "active")}, 2)

    assert ledger.run(AdapterRepository, "remove", POOL, "sql")
    assert (catalogue(ledger), version(ledger)) == ({"sql": ("r2", "removed")}, 3)
    assert not ledger.run(AdapterRepository, "remove", POOL, "sql")
    assert version(ledger) == 3


def test_a_quarantined_adapters_queued_jobs_end_with_the_reason_and_others_feel_nothing(
    ledger: Ledger,
) -> None:
    add(ledger, "bad", "r1")
    add(ledger, "good", "r2")
    doomed = ledger.admitted(adapter="bad", revision="r1", callback_url="https://example.com/hook")[0]
    fine = ledger.admitted(adapter="good", revision="r2")[0]

    assert ledger.run(AdapterRepository, "quarantine", POOL, "r1", "header is truncated")
    assert not ledger.run(AdapterRepository, "quarantine", POOL, "r1", "again")
    rejected = ledger.run(AdapterRepository, "reject_quarantined", POOL)

    assert [(job.job_id, job.state) for job in rejected] == [(doomed, JobState.REJECTED)]
    assert rejected[0].result.error.code == "adapter_quarantined"
    assert "header is truncated" in rejected[0].result.error.message
    assert ledger.state(fine) == JobState.QUEUED
    assert catalogue(ledger)["bad"] == ("r1", "quarantined")
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.rejected",)]


def test_added_again_a_quarantined_revision_is_trusted_again(ledger: Ledger) -> None:
    add(ledger, "sql", "r1")
    ledger.run(AdapterRepository, "quarantine", POOL, "r1", "disk was full")

    add(ledger, "sql", "r1")

    assert catalogue(ledger) == {"sql": ("r1", "active")}


def test_a_quarantined_revision_that_was_loaded_is_trusted_again_once(ledger: Ledger) -> None:
    add(ledger, "sql", "r1")
    assert not ledger.run(AdapterRepository, "lift", POOL, "r1")
    ledger.run(AdapterRepository, "quarantine", POOL, "r1", "two stores are without it")
    before = version(ledger)

    assert ledger.run(AdapterRepository, "lift", POOL, "r1")
    assert not ledger.run(AdapterRepository, "lift", POOL, "r1")

    assert (catalogue(ledger), version(ledger)) == ({"sql": ("r1", "active")}, before + 1)
    assert ledger.sql("SELECT reason FROM adapter_revisions") == [(None,)]


def test_what_stores_could_not_give_is_kept_with_its_times_until_the_revision_is_added_again(
    ledger: Ledger,
) -> None:
    add(ledger, "sql", "r1")
    add(ledger, "rot13", "r2")
    for revision, left_s in (("r1", 5.0), ("r1", 25.0), ("r2", -1.0)):
        failure = StoreFailureRow(revision, "h:/s", "adapter_io", "EIO", 65.0, 5.0, left_s, 30.0, 2)
        ledger.run(StoreFailureRepository, "keep", POOL, failure)

    found = ledger.run(StoreFailureRepository, "listed", POOL)
    assert [(one.digest, one.tries) for one in found] == [("r1", 2), ("r2", 2)]
    assert found[0].first_ago_s == pytest.approx(65.0, abs=3.0)
    assert found[0].left_s == pytest.approx(25.0, abs=3.0)
    assert found[0].pause_s == 30.0
    assert ledger.run(StoreFailureRepository, "cooling", POOL).keys() == {"r1"}
    shown = {one.name: one for one in ledger.run(AdapterRepository, "listed", POOL)}
    assert (shown["sql"].state, shown["rot13"].state) == ("cooling", "active")
    assert "h:/s could not give it (adapter_io: EIO), and is asked again in" in (shown["sql"].reason or "")

    ledger.run(StoreFailureRepository, "keep", "another pool", *found)
    ledger.run(StoreFailureRepository, "drop", "another pool", [("r1", "elsewhere:/s")])
    add(ledger, "alias", "r1")
    assert [one.digest for one in ledger.run(StoreFailureRepository, "listed", POOL)] == ["r2"]
    assert len(ledger.run(StoreFailureRepository, "listed", "another pool")) == 2
    ledger.run(StoreFailureRepository, "drop", "another pool", [("r1", "h:/s"), ("r2", "h:/s")])
    assert ledger.run(StoreFailureRepository, "listed", "another pool") == []

    ledger.worker(store="h:/s")
    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0014")
        command.upgrade(alembic_config(connection), "head")
    assert ledger.run(StoreFailureRepository, "listed", POOL) == []
    assert ledger.run(WorkerRepository, "get", "w1").store == "host-w1"


def test_a_revision_is_pinned_by_its_name_and_by_unfinished_jobs(ledger: Ledger) -> None:
    add(ledger, "sql", "r1")
    queued = ledger.admitted(adapter="sql", revision="r1")[0]
    add(ledger, "sql", "r2")
    assert ledger.run(AdapterRepository, "mark_unused", POOL, 0.0) == []

    (job,) = ledger.lease(ledger.worker(), queued)
    assert ledger.run(AdapterRepository, "mark_unused", POOL, 0.0) == []

    ledger.finish("w1", ended(job))
    assert ledger.run(AdapterRepository, "mark_unused", POOL, 0.0) == ["r1"]
    ledger.run(AdapterRepository, "remove", POOL, "sql")
    assert ledger.run(AdapterRepository, "mark_unused", POOL, 0.0) == ["r2"]
    assert ledger.run(AdapterRepository, "collecting", POOL) == ["r1", "r2"]


def test_what_is_uncertain_about_a_revision_stands_in_the_results_of_its_jobs(ledger: Ledger) -> None:
    doubted = RevisionRow("r1", 8, ("q_proj",), 1000, warnings=("whose base", "whose template"))
    ledger.run(AdapterRepository, "add_revision", POOL, "sql", doubted)
    add(ledger, "sql", "r2")
    jobs = [ledger.admitted(adapter="sql", revision=revision)[0] for revision in ("r1", "r2")]

    assert [ledger.get(job).warnings for job in jobs] == [("whose base", "whose template"), ()]

    add(ledger, "sql", "r1")  # under another name of the base, which leaves no doubt
    assert ledger.get(jobs[0]).warnings == ()

"""Names move over revisions; a revision stays as long as a job may need it."""

from __future__ import annotations

from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
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

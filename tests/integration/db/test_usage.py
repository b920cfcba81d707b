"""Usage adds up, whoever folds it and however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from db.records import UsageRow
from db.repositories.leases import LeaseRepository
from db.repositories.usage import UsageRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import Ledger, ended


def report(ledger: Ledger, by: str = "adapter") -> dict[str | None, UsageRow]:
    rows = ledger.run(UsageRepository, "report", by, 3600.0)
    return {getattr(row, by): row for row in rows}


def run_jobs(ledger: Ledger, worker: str, number: int, adapter: str | None, tenant: str = "acme") -> None:
    for job in ledger.lease(worker, *ledger.admitted(number, adapter=adapter, tenant=tenant)):
        ledger.finish(worker, ended(job))


def test_a_report_is_the_same_before_and_after_folding(ledger: Ledger) -> None:
    run_jobs(ledger, ledger.worker(), 5, "sql")
    run_jobs(ledger, "w1", 2, None, tenant="other")

    before = report(ledger)
    folded = [ledger.run(UsageRepository, "fold"), ledger.run(UsageRepository, "fold")]

    assert folded == [7, 0]
    assert report(ledger) == before
    assert (before["sql"].jobs, before["sql"].completion_tokens, before["sql"].device_ms) == (5, 25, 35.0)
    assert (before[None].jobs, before[None].queue_ms) == (2, 20.0)
    assert {name: row.jobs for name, row in report(ledger, "tenant").items()} == {"acme": 5, "other": 2}


def test_a_second_fold_adds_to_the_first(ledger: Ledger) -> None:
    ledger.worker()

    for _ in range(3):
        run_jobs(ledger, "w1", 2, "sql")
        ledger.run(UsageRepository, "fold", 1)

    assert report(ledger)["sql"].jobs == 6
    assert ledger.sql("SELECT count(*) FROM adapter_usage") == [(1,)]


def test_folding_at_once_counts_nothing_twice(ledger: Ledger) -> None:
    ledger.worker()
    for adapter in ("a", "b", "c"):
        run_jobs(ledger, "w1", 20, adapter)

    with ThreadPoolExecutor(4) as threads:
        folded = list(threads.map(lambda _: ledger.run(UsageRepository, "fold", 10), range(12)))

    assert sum(folded) + ledger.run(UsageRepository, "fold") == 60
    assert {name: row.jobs for name, row in report(ledger).items()} == {"a": 20, "b": 20, "c": 20}


def test_device_time_is_attributed_or_wasted_and_never_lost(ledger: Ledger) -> None:
    good, cancelled, given_back, fenced = ledger.lease(ledger.worker(), *ledger.admitted(4, adapter="sql"))
    ledger.run(LeaseRepository, "release", "w1", [(fenced.job_id, 1)])

    ledger.finish(
        "w1",
        ended(good, device_ms=1.0),
        ended(cancelled, JobState.CANCELLED, device_ms=2.0),
        ended(given_back, JobState.QUEUED, device_ms=4.0),
        ended(fenced, device_ms=8.0),
    )

    used = report(ledger)["sql"]
    assert (used.device_ms, used.wasted_device_ms, used.jobs) == (1.0, 14.0, 2)
    tokens = ledger.sql("SELECT sum(completion_tokens) FROM jobs")
    assert tokens == [(used.completion_tokens,)]


def test_usage_before_the_time_asked_for_is_left_out(ledger: Ledger) -> None:
    run_jobs(ledger, ledger.worker(), 1, "sql")
    ledger.run(UsageRepository, "fold")
    ledger.sql("UPDATE adapter_usage SET hour = hour - interval '3 hours'")

    assert report(ledger) == {}

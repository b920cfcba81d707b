"""What the command reads of jobs and usage from a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest

from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from tests.integration.cli.conftest import Command
from tests.integration.db.ledger import Ledger, ended


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    ledger.worker()
    yield ledger
    ledger.database.dispose()


def finish(ledger: Ledger, **fields: str) -> JobResult:
    """Run one job to its end."""
    job = ledger.leased(**fields)
    return ledger.finish("w1", ended(job, output="HELLO [bold]", revision=job.revision))[0].result


def test_one_job_is_shown_whole(lorayard: Command, ledger: Ledger) -> None:
    result = finish(ledger, tenant="acme")

    ran = lorayard("jobs", str(result.job_id))

    shown = JobResult.model_validate_json(ran.out)
    assert (shown.output, shown.state, shown.tenant) == ("HELLO [bold]", JobState.SUCCEEDED, "acme")


def test_a_job_that_is_not_there_is_named(lorayard: Command) -> None:
    job_id = uuid4()
    ran = lorayard("jobs", str(job_id))

    assert (ran.status, ran.err) == (
        1,
        f"error: the ledger has no job {job_id}: check the id, or wait until it is admitted\n",
    )


def test_recent_jobs_come_latest_first_and_can_be_chosen(lorayard: Command, ledger: Ledger) -> None:
    first, second = finish(ledger, tenant="acme"), finish(ledger, tenant="umbrella")
    queued = ledger.admitted(tenant="acme")[0]

    def ids(*options: str) -> list[str]:
        return [json.loads(line)["job_id"] for line in lorayard("jobs", "--json", *options).out.splitlines()]

    assert ids() == [str(job_id) for job_id in (queued, second.job_id, first.job_id)]
    assert ids("--state", "succeeded", "--tenant", "acme") == [str(first.job_id)]
    assert ids("--limit", "1") == [str(queued)]
    assert str(second.job_id) in lorayard("jobs").out


def test_no_jobs_are_told_as_such(lorayard: Command) -> None:
    assert lorayard("jobs").out == "no jobs\n"


def test_usage_is_summed_per_adapter_and_per_tenant(lorayard: Command, ledger: Ledger) -> None:
    finish(ledger, tenant="acme")
    finish(ledger, tenant="umbrella")

    by_adapter = json.loads(lorayard("usage", "--json").out)
    by_tenant = [json.loads(row) for row in lorayard("usage", "--by", "tenant", "--json").out.splitlines()]

    assert (by_adapter["adapter"], by_adapter["jobs"], by_adapter["completion_tokens"]) == ("(base)", 2, 10)
    assert {row["tenant"]: row["jobs"] for row in by_tenant} == {"acme": 1, "umbrella": 1}


def test_usage_shows_what_keeping_an_adapter_cost(lorayard: Command, ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), adapter="sql")
    ledger.finish("w1", ended(job, loads=2, load_ms=3.5, hits=5, evictions=1))

    shown = json.loads(lorayard("usage", "--json").out)

    assert (shown["adapter"], shown["loads"], shown["load_ms"], shown["hits"], shown["evictions"]) == (
        "sql", 2, 3.5, 5, 1,
    )  # fmt: skip


def test_no_usage_is_told_as_such(lorayard: Command) -> None:
    assert lorayard("usage", "--since", "7d").out == "nothing was used in the last 7d\n"


@pytest.mark.parametrize("arguments", [("usage", "--since", "yesterday"), ("usage", "--by", "moon")])
def test_an_option_that_makes_no_sense_is_refused(arguments: tuple[str, ...], lorayard: Command) -> None:
    ran = lorayard(*arguments)

    assert ran.status == 2
    assert arguments[-1] in ran.err

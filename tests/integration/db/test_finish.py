"""A result is written once, with its webhook and its usage, or not at all."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from db.errors import UnknownWorker
from db.records import EndedAttempt
from db.repositories.jobs import JobRepository
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from tests.integration.db.ledger import Ledger, ended

HOOK = "https://example.com/hook"


def test_a_finished_job_has_its_output_attempt_usage_and_webhook(ledger: Ledger) -> None:
    job = ledger.leased(
        ledger.worker(), adapter="sql", tenant="acme", callback_url=HOOK, metadata={"row": 7}, revision="r1"
    )

    chosen_by = {"temperature": 0.5, "top_k": 40, "repetition_penalty": 1.0}

    report = ended(job, output="SELECT 1", finish_reason="stop", sampling=chosen_by, loads=1, load_ms=4.0)
    done = ledger.finish("w1", report)

    result = ledger.get(job.job_id)
    assert [entry.result for entry in done] == [result]
    assert (result.state, result.output, result.finish_reason) == (JobState.SUCCEEDED, "SELECT 1", "stop")
    assert (result.prompt_tokens, result.completion_tokens, result.run_ms) == (3, 5, 20.0)
    assert (result.worker, result.revision, result.metadata) == ("host-w1", "r1", {"row": 7})
    assert json.dumps(result.sampling) == json.dumps(chosen_by)
    assert done[0].reply_to == "client-1"
    assert ledger.sql("SELECT attempt, ended, device_ms FROM attempts") == [(1, "succeeded", 7.0)]
    assert ledger.sql("SELECT url, event_type, tenant FROM webhook_deliveries") == [
        (HOOK, "job.succeeded", "acme")
    ]
    assert ledger.sql("SELECT adapter, tenant, jobs, device_ms, loads, load_ms FROM usage_deltas") == [
        ("sql", "acme", 1, 7.0, 1, 4.0)
    ]


def test_what_is_announced_is_what_the_ledger_has(ledger: Ledger) -> None:
    jobs = ledger.lease(ledger.worker(), *ledger.admitted(4, metadata={"row": 7}))
    failed, given_back, unfit, good = jobs
    wished = ledger.leased("w1")
    ledger.run(JobRepository, "cancel", wished.job_id)
    error = JobError(code="engine_error", message="broke: ü")

    done = ledger.finish(
        "w1",
        ended(failed, JobState.FAILED, error=error, sampling={"temperature": 0.0}),
        ended(given_back, JobState.QUEUED, output="half"),
        ended(unfit, JobState.REJECTED, output=None, error=error),
        ended(good, output='é\n"{,\\' * 2000),
        ended(wished, JobState.QUEUED, output="half"),
    )

    assert [entry.result for entry in done] == [
        ledger.get(job.job_id) for job in (failed, given_back, unfit, good, wished)
    ]
    assert [entry.result.output for entry in done] == [None, None, None, 'é\n"{,\\' * 2000, "half"]
    assert [entry.result.sampling for entry in done] == [{"temperature": 0.0}, None, None, None, None]


def test_a_failed_job_keeps_its_error_and_counts_as_a_failure(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    error = JobError(code="out_of_memory", message="needs 9 GiB")

    ledger.finish("w1", ended(job, JobState.FAILED, error=error))

    assert ledger.get(job.job_id).error == error
    assert ledger.sql("SELECT jobs, failures FROM usage_deltas") == [(1, 1)]


def test_results_come_back_in_the_order_reported(ledger: Ledger) -> None:
    jobs = ledger.lease(ledger.worker(), *ledger.admitted(8))[::-1]

    done = ledger.finish("w1", *map(ended, jobs))

    assert [entry.job_id for entry in done] == [job.job_id for job in jobs]


def test_a_group_that_comes_again_changes_nothing_and_answers_the_same(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url=HOOK)

    first = ledger.finish("w1", ended(job, output="once"), seq=1)
    again = ledger.finish("w1", ended(job, output="twice"), seq=1)

    assert again == first
    assert ledger.sql("SELECT jobs, device_ms, wasted_device_ms FROM usage_deltas") == [(1, 7.0, 0.0)]
    assert ledger.sql("SELECT count(*) FROM webhook_deliveries") == [(1,)]


def test_a_job_reported_twice_in_one_group_counts_once(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())

    done = ledger.finish("w1", ended(job, output="first"), ended(job, output="second"))

    assert [entry.result.output for entry in done] == ["first"]
    assert ledger.sql("SELECT jobs, device_ms, wasted_device_ms FROM usage_deltas") == [(1, 7.0, 0.0)]


def test_a_second_end_in_a_later_group_is_fenced(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    ledger.finish("w1", ended(job, output="first"))

    assert ledger.finish("w1", ended(job, JobState.FAILED, output="second")) == []

    assert ledger.get(job.job_id).output == "first"
    assert ledger.sql("SELECT sum(jobs), sum(device_ms), sum(wasted_device_ms) FROM usage_deltas") == [
        (1, 7.0, 7.0)
    ]


def test_another_incarnation_cannot_finish_it(ledger: Ledger) -> None:
    ledger.worker("w2")
    job = ledger.leased(ledger.worker())

    assert ledger.finish("w2", ended(job)) == []
    assert ledger.state(job.job_id) == JobState.LEASED


def test_a_job_given_back_waits_again_and_its_time_is_wasted(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url=HOOK)

    done = ledger.finish("w1", ended(job, JobState.QUEUED))

    assert [entry.state for entry in done] == [JobState.QUEUED]
    assert ledger.get(job.job_id).completion_tokens == 0
    assert ledger.sql("SELECT jobs, completion_tokens, wasted_device_ms FROM usage_deltas") == [(0, 0, 7.0)]
    assert ledger.sql("SELECT * FROM webhook_deliveries") == []
    assert ledger.lease("w1", job.job_id)[0].attempt == 2


def test_a_job_given_back_after_a_cancel_ends_cancelled(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url=HOOK)
    ledger.run(JobRepository, "cancel", job.job_id)

    done = ledger.finish("w1", ended(job, JobState.QUEUED))

    assert [entry.state for entry in done] == [JobState.CANCELLED]
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.cancelled",)]


def test_a_fenced_job_does_not_hold_back_its_neighbours(ledger: Ledger) -> None:
    good = ledger.leased(ledger.worker())
    unknown = EndedAttempt(uuid4(), 1, JobState.SUCCEEDED, output="?")

    done = ledger.finish("w1", unknown, ended(good, output="fine"))

    assert [entry.result.output for entry in done] == ["fine"]


def test_what_adapters_cost_is_added_up_per_adapter_and_tenant(ledger: Ledger) -> None:
    jobs = ledger.lease(ledger.worker(), *ledger.admitted(2, adapter="sql", tenant="acme"))
    base = ledger.leased("w1", tenant="acme")

    ledger.finish("w1", ended(jobs[0], hits=1), ended(jobs[1], evictions=2, loads=1), ended(base))

    rows = ledger.sql("SELECT adapter, jobs, hits, evictions, loads FROM usage_deltas ORDER BY adapter")
    assert rows == [("", 1, 0, 0, 0), ("sql", 2, 1, 2, 1)]


def test_evictions_of_a_job_that_is_given_back_count_too(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), adapter="sql")

    ledger.finish("w1", ended(job, JobState.QUEUED, evictions=1))

    assert ledger.sql("SELECT jobs, evictions FROM usage_deltas") == [(0, 1)]


def test_a_worker_cannot_call_a_job_dead(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())

    with pytest.raises(ValueError, match="was reported dead"):
        ledger.finish("w1", ended(job, JobState.DEAD))


def test_an_unregistered_worker_cannot_finish_anything(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())

    with pytest.raises(UnknownWorker, match="register it"):
        ledger.finish("ghost", ended(job))

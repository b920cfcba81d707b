"""A name is taken once, however often and in whatever company it comes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from db.records import Admitted, RejectedEntry
from db.repositories.admission import AdmissionRepository
from db.repositories.backlog import BacklogRepository
from db.repositories.jobs import JobRepository
from lorayard.contract.ids import payload_sha256
from lorayard.contract.reading import read_request
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from tests.integration.db.ledger import POOL, Ledger, new_job

KEY: dict[str, Any] = {"idempotency_key": "k"}
SCHEMA = {"type": "object", "required": ["b", "a"], "properties": {"b": {"const": None}, "a": {}}}


def test_jobs_are_admitted_in_the_order_given(ledger: Ledger) -> None:
    jobs = [new_job(prompt=f"job {number}") for number in range(300)]

    admitted = ledger.admit(*jobs)

    queued = ledger.run(BacklogRepository, "queued_after", POOL, 0, 1000)
    assert [entry.outcome for entry in admitted] == ["new"] * 300
    assert [row.job_id for row in queued] == [job.job_id for job in jobs]


def test_a_job_comes_back_as_it_was_submitted(ledger: Ledger) -> None:
    metadata = {"z": 1.0, "a": [1e300, None, "\u00e9\U0001f600"], "big": 2**70}
    job = new_job(
        messages=({"role": "user", "content": "hi"},),
        prompt=None,
        adapter="sql",
        revision="sha256:aa",
        adapter_scale=-0.1,
        stream=True,
        structured_outputs={"json": SCHEMA},
        temperature=0.7,
        top_p=0.9,
        top_k=10**30,
        seed=4611686018427387904,
        stop=("\n", "END"),
        min_p=0.1,
        logit_bias={7: -2.5},
        bad_words=("é",),
        deadline_s=60.0,
        waited_ms=1500.0,
        metadata=metadata,
        callback_url="https://Example.com:8443/hook?x=1",
    )
    ledger.admit(job)

    leased = ledger.lease(ledger.worker(), job.job_id)[0]

    request = read_request(leased)
    assert request.messages == job.spec.messages
    assert request.prompt is None
    assert (leased.adapter, leased.revision) == ("sql", "sha256:aa")
    assert request.adapter_scale == -0.1
    assert request.stream
    assert request.structured_outputs is not None
    assert request.structured_outputs.json_schema == SCHEMA
    properties = request.structured_outputs.json_schema["properties"]
    assert isinstance(properties, dict)
    assert list(properties) == ["b", "a"]
    assert (request.temperature, request.top_p, request.seed) == (0.7, 0.9, 4611686018427387904)
    assert request.top_k == 2**31 - 1
    assert request.stop == ("\n", "END")
    assert (request.min_p, request.logit_bias, request.bad_words) == (0.1, {7: -2.5}, ("é",))
    assert request == GenerationRequest(**{name: getattr(job.spec, name) for name, _ in request})
    assert list(leased.metadata.items()) == list(metadata.items())
    assert leased.has_callback
    assert 1500 <= leased.queue_ms < 30_000
    assert leased.first_token_within_s is not None
    assert 30 < leased.first_token_within_s <= 58.5


def test_the_same_payload_again_is_a_repeat_and_another_one_a_conflict(ledger: Ledger) -> None:
    first = new_job(prompt="one", **KEY)
    ledger.admit(first)

    again = ledger.admit(
        new_job(first.job_id, prompt="one", **KEY), new_job(first.job_id, prompt="two", **KEY)
    )

    assert [entry.outcome for entry in again] == ["repeat", "conflict"]
    assert [entry.state for entry in again] == [JobState.QUEUED] * 2
    assert ledger.sql("SELECT request->>'prompt' FROM job_inputs") == [("one",)]


def test_of_duplicates_in_one_block_the_first_wins(ledger: Ledger) -> None:
    name = uuid4()
    other = new_job(prompt="other")

    admitted = ledger.admit(
        new_job(name, prompt="one", **KEY),
        other,
        new_job(name, prompt="two", **KEY),
        new_job(name, prompt="one", **KEY),
    )

    assert [entry.outcome for entry in admitted] == ["new", "new", "conflict", "repeat"]
    assert ledger.sql("SELECT count(*) FROM jobs") == [(2,)]


def test_a_key_outlives_its_job(ledger: Ledger) -> None:
    job, other = (new_job(UUID(int=1), prompt=prompt, **KEY) for prompt in ("one", "two"))
    ledger.admit(job)
    ledger.sql("DELETE FROM jobs")

    assert [(entry.outcome, entry.state) for entry in ledger.admit(job, other)] == [
        ("repeat", None),
        ("conflict", None),
    ]
    assert ledger.run(JobRepository, "left", [job.job_id, uuid4()]) == {job.job_id}


def test_a_key_that_another_pool_has_is_a_conflict_while_its_job_is_there_and_after(ledger: Ledger) -> None:
    job = new_job(**KEY)
    ledger.admit(job)

    def admit_elsewhere() -> list[Admitted]:
        return ledger.database.run(lambda c: AdmissionRepository(c).admit("pool-2", [job, new_job()]))

    while_there = admit_elsewhere()
    ledger.sql("DELETE FROM jobs")
    after = admit_elsewhere()

    assert [(one.outcome, one.elsewhere) for one in while_there] == [("conflict", POOL), ("new", None)]
    assert [(one.outcome, one.elsewhere) for one in after] == [("conflict", POOL), ("new", None)]


def test_the_same_key_for_a_model_of_another_name_is_a_conflict(ledger: Ledger) -> None:
    job = new_job(**KEY)
    ledger.admit(job)
    other = replace(
        job, submission_id=uuid4(), payload_sha256=payload_sha256(job.spec, "large"), model="large"
    )

    assert [entry.outcome for entry in ledger.admit(other)] == ["conflict"]


def test_a_job_without_a_key_leaves_no_key_and_is_known_when_its_entry_is_read_again(ledger: Ledger) -> None:
    job = new_job()
    ledger.admit(job)

    again = ledger.admit(job, job, new_job(job.job_id))

    assert [(one.outcome, one.state) for one in again] == [
        ("repeat", JobState.QUEUED),
        ("repeat", JobState.QUEUED),
        ("conflict", JobState.QUEUED),
    ]
    assert ledger.sql("SELECT count(*) FROM job_keys") == [(0,)]
    assert ledger.sql("SELECT count(*) FROM jobs") == [(1,)]


def test_a_job_that_was_read_in_part_is_no_repeat_of_what_is_left_of_it(ledger: Ledger) -> None:
    job = new_job(**KEY)
    ledger.admit(job)
    of_later = replace(job, submission_id=uuid4(), payload_sha256="5:of a later rule", is_whole=False)

    assert [entry.outcome for entry in ledger.admit(of_later)] == ["conflict"]


def test_a_cancel_may_come_before_its_job(ledger: Ledger) -> None:
    job = new_job(callback_url="https://example.com/hook")
    assert ledger.run(JobRepository, "cancel", job.job_id).state is None

    admitted = ledger.admit(job)

    assert [(entry.outcome, entry.state) for entry in admitted] == [("new", JobState.CANCELLED)]
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.cancelled",)]


def test_a_rejected_job_is_born_ended_with_its_reason_and_its_webhook(ledger: Ledger) -> None:
    error = JobError(code="unknown_adapter", message="no adapter 'sqk': did you mean 'sql'?")
    bad = new_job(rejection=error, callback_url="https://example.com/hook", metadata={"n": 1})
    good = new_job()

    admitted = ledger.admit(good, bad)

    assert [(entry.job_id, entry.outcome, entry.state) for entry in admitted] == [
        (good.job_id, "new", JobState.QUEUED),
        (bad.job_id, "new", JobState.REJECTED),
    ]
    born = ledger.get(bad.job_id)
    assert (born.state, born.error, born.metadata) == (JobState.REJECTED, error, {"n": 1})
    assert ledger.sql("SELECT job_id, event_type, host FROM webhook_deliveries") == [
        (bad.job_id, "job.rejected", "example.com")
    ]


def test_a_hundred_submits_of_one_key_at_once_make_one_job(ledger: Ledger) -> None:
    name = uuid4()

    with ThreadPoolExecutor(20) as threads:
        outcomes = list(threads.map(lambda _: ledger.admit(new_job(name, **KEY))[0].outcome, range(100)))

    assert sorted(outcomes) == ["new"] + ["repeat"] * 99
    assert ledger.sql("SELECT count(*) FROM jobs") == [(1,)]


def test_blocks_that_share_names_in_other_orders_do_not_deadlock(ledger: Ledger) -> None:
    jobs = [new_job(**KEY) for _ in range(50)]
    orders = [jobs, jobs[::-1]] * 4

    with ThreadPoolExecutor(8) as threads:
        admitted = [
            entry for block in threads.map(lambda order: ledger.admit(*order), orders) for entry in block
        ]

    assert sum(entry.outcome == "new" for entry in admitted) == 50
    assert ledger.sql("SELECT count(*) FROM jobs") == [(50,)]


def test_an_entry_put_aside_keeps_its_bytes_and_is_kept_once(ledger: Ledger) -> None:
    entries = [RejectedEntry("jobs:high", f"{n}-0", b"\x00\xff", "not JSON") for n in range(2)]
    for _ in range(2):
        ledger.run(AdmissionRepository, "put_aside", POOL, entries)

    assert ledger.sql("SELECT entry_id, body, error FROM intake_rejects ORDER BY entry_id") == [
        ("0-0", b"\x00\xff", "not JSON"),
        ("1-0", b"\x00\xff", "not JSON"),
    ]


def test_an_empty_block_is_no_error(ledger: Ledger) -> None:
    assert ledger.admit() == []

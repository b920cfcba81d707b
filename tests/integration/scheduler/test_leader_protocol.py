"""What producers and workers may expect of a leader, asked of the real one and of its doubles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.records import EndedAttempt
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import BatchJob, Command, JobEnvelope, JobReply, MicroBatch
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from tests.integration.client.tiny_leader import KEYS, TinyLeader, never_end
from tests.integration.client.tiny_leader import succeed as tiny_succeed
from tests.integration.scheduler.pool_rig import CLIENT, MODEL, PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.integration.workers.scripted_leader import ScriptedLeader
from tests.polling import eventually

LONG = "x" * 900_000


# Towards producers: tests/integration/client/tiny_leader.py stands in.


@contextmanager
def tiny_leader(rig: PoolRig, ending: str) -> Iterator[None]:
    """The double of the client's tests."""

    def shout(envelope: JobEnvelope) -> JobResult:
        return JobResult(job_id=envelope.job_id, state=JobState.SUCCEEDED, output=LONG)

    rig.keys = KEYS
    with TinyLeader(rig.redis_url, {"well": tiny_succeed, "long": shout, "never": never_end}[ending]):
        yield


@contextmanager
def scheduler(rig: PoolRig, ending: str) -> Iterator[None]:
    """The real one, with a worker unless jobs are to stay queued."""

    def shout(job: BatchJob) -> EndedAttempt:
        return EndedAttempt(job.job_id, job.attempt, JobState.SUCCEEDED, output=LONG)

    with rig.scheduler():
        if ending == "never":
            yield
            return
        with ScriptedWorker(rig, {"well": succeed, "long": shout}[ending]):
            yield


def submit(rig: PoolRig, **fields: Any) -> JobEnvelope:
    """Submit one job and wait until it is admitted, or refused."""
    envelope = rig.envelope(confirm_ledger=True, **fields)
    rig.send(envelope)
    rig.reply(submission_id=envelope.submission_id)
    return envelope


def ask(rig: PoolRig, kind: str, job_id: UUID) -> JobReply:
    """Ask the leader and wait for its answer."""
    return rig.reply(request_id=rig.ask(kind, job_id))


leaders = pytest.mark.parametrize("leader", [tiny_leader, scheduler])
Leader = Callable[[PoolRig, str], Any]


@leaders
def test_a_job_is_taken_from_the_intake_admitted_and_told_with_its_result(
    rig: PoolRig, leader: Leader
) -> None:
    with leader(rig, "well"):
        envelope = submit(rig, metadata={"row": 7})
        told = rig.reply(job_id=envelope.job_id, state=JobState.SUCCEEDED)
        eventually(rig.intake_is_empty)
        looked_up = ask(rig, "lookup", envelope.job_id)

    assert told.result is not None
    assert (told.result.output, told.result.metadata, told.output_omitted) == ("HELLO", {"row": 7}, False)
    assert told.conflict is None
    assert (looked_up.state, looked_up.result) == (JobState.SUCCEEDED, told.result)


@leaders
def test_the_same_job_again_is_told_as_it_stands_and_another_of_its_name_as_a_conflict(
    rig: PoolRig, leader: Leader
) -> None:
    with leader(rig, "never"):
        first = submit(rig, idempotency_key="k")
        again = submit(rig, idempotency_key="k")
        other = submit(rig, idempotency_key="k", prompt="other")
        told = [rig.reply(submission_id=one.submission_id) for one in (first, again, other)]

    assert [reply.state for reply in told] == [JobState.QUEUED, JobState.QUEUED, None]
    assert [reply.conflict and reply.conflict.code for reply in told] == [None, None, "idempotency_conflict"]


@leaders
def test_a_long_output_is_left_out_until_it_is_looked_up(rig: PoolRig, leader: Leader) -> None:
    with leader(rig, "long"):
        envelope = submit(rig)
        told = rig.reply(job_id=envelope.job_id, state=JobState.SUCCEEDED)
        looked_up = ask(rig, "lookup", envelope.job_id)

    assert told.output_omitted
    assert told.result is not None
    assert told.result.output is None
    assert looked_up.result is not None
    assert (looked_up.result.output, looked_up.output_omitted) == (LONG, False)


@leaders
def test_a_queued_job_is_cancelled_and_an_unknown_one_has_no_state(rig: PoolRig, leader: Leader) -> None:
    with leader(rig, "never"):
        envelope = submit(rig)
        states = [
            ask(rig, "lookup", envelope.job_id).state,
            ask(rig, "cancel", envelope.job_id).state,
            ask(rig, "lookup", envelope.job_id).state,
            ask(rig, "lookup", uuid4()).state,
        ]

    assert states == [JobState.QUEUED, JobState.CANCELLED, JobState.CANCELLED, None]


# Towards workers: tests/integration/workers/scripted_leader.py stands in.


@dataclass(frozen=True, slots=True)
class Dispatching:
    """A leader with two verbs: give the worker a job, and cancel it."""

    dispatch: Callable[[str, JobSpec], UUID]
    cancel: Callable[[str, UUID], object]


@contextmanager
def scripted_leader(rig: PoolRig, store: Path) -> Iterator[Dispatching]:
    """The double of the workers' tests."""
    double = ScriptedLeader(rig.redis_url, rig.database_url, store, MODEL)
    assert double.pool == rig.pool
    yield Dispatching(
        lambda incarnation, spec: double.dispatch(incarnation, [spec])[0],
        lambda incarnation, job_id: double.command(incarnation, "cancel", job_ids=(job_id,)),
    )
    double.close()


@contextmanager
def dispatching_scheduler(rig: PoolRig, store: Path) -> Iterator[Dispatching]:
    """The real one."""
    del store
    with rig.scheduler():
        yield Dispatching(
            lambda _, spec: rig.submit(**spec.model_dump(exclude_unset=True))[0],
            lambda _, job_id: ask(rig, "cancel", job_id),
        )


@pytest.mark.parametrize("leader", [scripted_leader, dispatching_scheduler])
def test_a_worker_gets_leased_jobs_of_its_own_with_what_was_asked_and_is_told_of_cancels(
    rig: PoolRig, tmp_path: Path, leader: Callable[[PoolRig, Path], Any]
) -> None:
    spec = JobSpec(prompt="hello", max_tokens=7, metadata={"row": 7})
    with leader(rig, tmp_path) as leading, ScriptedWorker(rig, hold) as worker:
        job_id = leading.dispatch(worker.incarnation, spec)
        (job,) = eventually(lambda: worker.jobs, what="a micro-batch")
        (batch,) = worker.batches
        (row,) = rig.sql("SELECT state, attempt, incarnation FROM jobs")
        (term,) = rig.sql("SELECT term FROM scheduler_terms WHERE pool = :pool", pool=rig.pool)

        leading.cancel(worker.incarnation, job_id)
        eventually(lambda: commands(rig, worker.incarnation), what="a command")
        rig.wait_for(JobState.CANCELLED, job_id)

    assert isinstance(batch, MicroBatch)
    assert (batch.incarnation, batch.pool, batch.term) == (worker.incarnation, rig.pool, term.term)
    assert (row.state, row.attempt, row.incarnation) == ("leased", 1, worker.incarnation)
    assert (job.job_id, job.attempt, job.reply_to) == (job_id, 1, CLIENT)
    assert GenerationRequest.model_validate(job.request) == GenerationRequest(prompt="hello", max_tokens=7)
    assert (job.metadata, job.revision, job.has_callback) == ({"row": 7}, None, False)
    assert job.queue_ms >= 0
    assert [(c.kind, c.job_ids, c.term) for c in commands(rig, worker.incarnation)] == [
        ("cancel", (job_id,), term.term)
    ]


def commands(rig: PoolRig, incarnation: str) -> list[Command]:
    """Read all that the leader has told a worker beside its queue."""
    entries: Any = rig.redis.xrange(rig.keys.commands(incarnation))
    return [Command.from_entry(fields) for _, fields in entries]

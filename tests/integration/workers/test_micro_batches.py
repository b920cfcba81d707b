"""What a real worker does with micro-batches sent by a scripted leader."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from db.records import JobAttempt, WorkerLimits
from db.repositories.leases import LeaseRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.job import JobSpec
from lorayard.contract.states import JobState
from lorayard.contract.structured_outputs import StructuredOutputs
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, TINY, ScriptedLeader
from tests.integration.workers.worker_process import WorkerProcess, packages_in
from tests.polling import eventually


def test_jobs_over_all_adapters_succeed_with_right_answers_and_are_told(
    leader: ScriptedLeader, incarnation: str
) -> None:
    asked = questions(22)
    base = JobSpec(prompt="hello>", max_tokens=12)
    muted = JobSpec(prompt="hello>", max_tokens=12, adapter="upper", adapter_scale=0.0)
    cut = JobSpec(prompt="hello>", max_tokens=12, stop=("ll",), include_stop_str_in_output=True)
    hot = JobSpec(prompt="hello>", max_tokens=12, temperature=50.0, seed=1)  # the model's top_k of 1 holds
    free = JobSpec(prompt="hello>", max_tokens=12, temperature=50.0, seed=1, top_k=0)

    specs = [question.spec for question in asked] + [base, muted, cut, hot, free]
    job_ids = leader.dispatch(incarnation, specs)
    results = leader.ended(job_ids)

    assert {result.state for result in results} == {JobState.SUCCEEDED}
    answers = [question.answer for question in asked] + ["hello", "hello", "hell", "hello"]
    assert [result.output for result in results[:-1]] == answers
    assert results[-1].output != "hello"
    chosen_by = [result.sampling or {} for result in results]
    assert [(one["temperature"], one["top_k"]) for one in chosen_by[-3:]] == [(0.0, 1), (50.0, 1), (50.0, 0)]
    assert {len(one) for one in chosen_by} == {7}
    assert all(result.run_ms and result.prompt_tokens and result.completion_tokens for result in results)
    eventually(lambda: {reply.job_id for reply in leader.replies()} >= set(job_ids), what="all replies")
    replies = {reply.job_id: reply for reply in leader.replies()}
    assert [replies[job_id].result for job_id in job_ids] == results
    told = leader.told_ends(incarnation)
    assert {told[JobAttempt(job_id, 1)] for job_id in job_ids} == {"succeeded"}


def test_a_job_whose_message_is_not_json_ends_at_once_and_the_next_runs(
    leader: ScriptedLeader, incarnation: str
) -> None:
    (broken,) = leader.lease(incarnation, leader.admit([JobSpec(prompt="hello>", max_tokens=12)]))
    leader.send_broken(incarnation, broken)
    next_ids = leader.dispatch(incarnation, [JobSpec(prompt="hello>", max_tokens=12)])

    ended, succeeded = leader.ended([broken.job_id, *next_ids])

    assert succeeded.output == "hello"
    assert ended.error is not None
    assert ended.error.code == "unreadable_job"
    assert "scheduler sent it" in ended.error.message


def test_what_the_engine_computes_with_never_comes_into_the_worker_itself(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    adapted = questions(1)[0].spec
    choice = StructuredOutputs(choice=("yes", "no"))
    chosen = JobSpec(prompt="hello>", max_tokens=12, stream=True, structured_outputs=choice)
    refused = JobSpec(prompt="a" * 30_000, max_tokens=12)

    leader.ended(leader.dispatch(incarnation, [adapted, chosen, refused]))

    (engine,) = worker.engine_pids()
    computing = {"torch", "numpy", "tokenizers", "safetensors", "llguidance"}
    assert packages_in(engine) >= computing
    assert packages_in(worker.process.pid).isdisjoint(computing)


def test_usage_adds_up_to_what_the_jobs_report(leader: ScriptedLeader, incarnation: str) -> None:
    specs = [question.spec.model_copy(update={"tenant": "counted"}) for question in questions(12)]

    results = leader.ended(leader.dispatch(incarnation, specs))

    (usage,) = leader.sql(
        "SELECT sum(jobs) AS jobs, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion,"
        " sum(device_ms) AS device_ms FROM usage_deltas WHERE tenant = 'counted'"
    )
    assert usage.jobs == 12
    assert usage.prompt == sum(result.prompt_tokens for result in results)
    assert usage.completion == sum(result.completion_tokens for result in results)
    assert usage.device_ms > 0


def test_a_micro_batch_that_comes_again_runs_nothing_twice(leader: ScriptedLeader, incarnation: str) -> None:
    asked = questions(4)
    job_ids = leader.admit([question.spec for question in asked])
    leased = leader.lease(incarnation, job_ids)

    leader.send(incarnation, leased)
    leader.send(incarnation, leased)
    results = leader.ended(job_ids)
    leader.send(incarnation, leased)
    leader.ended(leader.dispatch(incarnation, [questions(1)[0].spec]))

    assert [result.output for result in results] == [question.answer for question in asked]
    assert [len(leader.attempts(job_id)) for job_id in job_ids] == [1, 1, 1, 1]
    told = [reply.job_id for reply in leader.replies() if reply.job_id in job_ids]
    assert sorted(told) == sorted(job_ids)


def test_a_batch_for_another_incarnation_or_pool_is_ignored(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    job_ids = leader.admit([questions(1)[0].spec])
    leased = leader.lease(incarnation, job_ids)

    leader.send(incarnation, leased, named="someone-else")
    leader.send(incarnation, leased, pool="another-pool")
    leader.ended(leader.dispatch(incarnation, [questions(1)[0].spec]))

    assert leader.states(job_ids) == ["leased"]
    assert sum("micro_batch.not_ours" in line for line in worker.log_lines()) == 2
    leader.send(incarnation, leased)
    assert leader.ended(job_ids)[0].state is JobState.SUCCEEDED


def test_a_fenced_attempt_adds_nothing_but_waste(leader: ScriptedLeader, incarnation: str) -> None:
    job_ids = leader.admit([ENDLESS.model_copy(update={"tenant": "fenced"})])
    leader.send(incarnation, leader.lease(incarnation, job_ids))
    leader.await_running(incarnation, *job_ids)

    _lease_to_another(leader, incarnation, job_ids)
    wasted = eventually(lambda: _wasted_ms(leader, "fenced"), what="wasted device time")

    assert wasted > 0
    _assert_untold(leader, incarnation, job_ids)


def test_a_message_that_comes_after_its_lease_is_dropped(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    job_ids = leader.admit([ENDLESS.model_copy(update={"tenant": "late"})])
    late = leader.lease(incarnation, job_ids)
    _lease_to_another(leader, incarnation, job_ids)

    leader.send(incarnation, late)
    leader.ended(leader.dispatch(incarnation, [questions(1)[0].spec]))

    assert [line for line in worker.log_lines() if "job.came_late" in line and str(job_ids[0]) in line]
    eventually(lambda: leader.held(incarnation) == set(), what="an empty hand")
    assert _wasted_ms(leader, "late") == 0.0
    _assert_untold(leader, incarnation, job_ids)


def test_cancels_stop_running_jobs_by_command_and_by_heartbeat(
    leader: ScriptedLeader, incarnation: str
) -> None:
    by_command, by_heartbeat = leader.dispatch(incarnation, [ENDLESS, ENDLESS])
    leader.await_running(incarnation, by_command, by_heartbeat)

    leader.command(incarnation, "cancel", job_ids=(by_command,))
    leader.sql("INSERT INTO cancellations (job_id) VALUES (:id)", id=by_heartbeat)
    results = leader.ended([by_command, by_heartbeat])

    assert [result.state for result in results] == [JobState.CANCELLED, JobState.CANCELLED]
    assert [result.output for result in results] == [None, None]


def test_a_command_of_an_older_leader_is_ignored(leader: ScriptedLeader, incarnation: str) -> None:
    (endless,) = leader.dispatch(incarnation, [ENDLESS])
    leader.await_running(incarnation, endless)
    # Any command of this term first, so that the worker has seen the term.
    leader.command(incarnation, "prefetch", revisions=(leader.revision("upper"),))

    leader.command(incarnation, "cancel", term=leader.term - 1, job_ids=(endless,))
    leader.ended(leader.dispatch(incarnation, [questions(1)[0].spec]))

    assert leader.states([endless]) == ["leased"]
    leader.command(incarnation, "cancel", job_ids=(endless,))
    leader.ended([endless])


def test_recalled_jobs_that_have_not_started_go_back(leader: ScriptedLeader, incarnation: str) -> None:
    running = leader.dispatch(incarnation, [ENDLESS] * 8)
    leader.await_running(incarnation, *running)
    (waiting,) = leader.dispatch(incarnation, [questions(1)[0].spec])
    # A recall that overtakes the batch on its other way finds nothing to give back.
    leader.await_held(incarnation, waiting)

    leader.command(incarnation, "recall", job_ids=(waiting, running[0]))
    eventually(lambda: leader.states([waiting]) == ["queued"], what="the recalled job")

    assert leader.states(running) == ["leased"] * 8
    assert [row.ended for row in leader.attempts(waiting)] == ["released"]
    leader.command(incarnation, "cancel", job_ids=tuple(running))
    leader.ended(running)


def test_a_job_without_a_token_at_its_deadline_expires(leader: ScriptedLeader, incarnation: str) -> None:
    running = leader.dispatch(incarnation, [ENDLESS] * 8)
    leader.await_running(incarnation, *running)

    late = leader.dispatch(incarnation, [questions(1)[0].spec], first_token_within_s=0.2)
    (result,) = leader.ended(late)

    assert result.state is JobState.EXPIRED
    assert result.error is not None
    assert result.error.code == "deadline_passed"
    leader.command(incarnation, "cancel", job_ids=tuple(running))
    leader.ended(running)


def test_a_prompt_too_long_is_rejected_with_its_code(leader: ScriptedLeader, incarnation: str) -> None:
    (result,) = leader.ended(leader.dispatch(incarnation, [JobSpec(prompt="a" * 30_000)]))

    assert result.state is JobState.REJECTED
    assert result.error is not None
    assert result.error.code == "invalid_prompt"


def test_bad_adapter_files_fail_their_jobs_alone_and_jobs_of_a_bad_store_go_back(
    leader: ScriptedLeader, incarnation: str, tmp_path: Path
) -> None:
    damaged = leader.add_damaged(tmp_path / "damaged")
    missing, other = "sha256:" + "0" * 64, "sha256:" + "1" * 64
    shutil.copytree(TINY / "adapters" / "upper", leader.store / other.removeprefix("sha256:"))
    good = questions(1)[0]

    (on_damaged, *gone) = [
        leader.admit([good.spec], revision=revision)[0] for revision in (damaged, missing, other)
    ]
    leader.send(incarnation, leader.lease(incarnation, [on_damaged, *gone]))
    (result,) = leader.ended([on_damaged])
    back = {JobAttempt(job_id, 1) for job_id in gone}
    eventually(lambda: back <= leader.told_ends(incarnation).keys(), what="the end of both attempts")
    (healthy,) = leader.ended(leader.dispatch(incarnation, [good.spec]))

    assert (result.state, result.error and result.error.code) == (JobState.FAILED, "adapter_file")
    assert leader.states(gone) == ["queued", "queued"]
    assert healthy.output == good.answer
    failures = {
        failure.revision: (failure.code, failure.retryable)
        for event in leader.events(incarnation)
        for failure in event.failures
    }
    assert failures == {
        damaged: ("adapter_file", False),
        missing: ("adapter_not_found", True),
        other: ("adapter_digest_mismatch", True),
    }


def test_heartbeats_tell_the_whole_of_residency(leader: ScriptedLeader, incarnation: str) -> None:
    revision = leader.revision("reverse")
    leader.command(incarnation, "prefetch", revisions=(revision,))

    def resident() -> bool:
        beats = [event for event in leader.events(incarnation) if event.held is not None]
        return bool(beats) and revision in {entry.revision for entry in beats[-1].residency}

    assert eventually(resident, what="a heartbeat that names the revision")


def _wasted_ms(leader: ScriptedLeader, tenant: str) -> float:
    (row,) = leader.sql(
        "SELECT sum(wasted_device_ms) AS ms FROM usage_deltas WHERE tenant = :tenant", tenant=tenant
    )
    return float(row.ms or 0)


def _lease_to_another(leader: ScriptedLeader, incarnation: str, job_ids: Sequence[UUID]) -> None:
    """Have an attempt 1 given up and leased to a worker that is not there."""
    given_up = [(job_id, 1) for job_id in job_ids]
    leader.database.run(lambda c: LeaseRepository(c).release(incarnation, given_up))
    assert [job.attempt for job in leader.lease(_register_another(leader), job_ids)] == [2]


def _assert_untold(leader: ScriptedLeader, incarnation: str, job_ids: Sequence[UUID]) -> None:
    """Nothing of attempt 1 has reached the ledger, the leader or the client."""
    assert leader.states(job_ids) == ["leased"]
    assert [leader.result(job_id).output for job_id in job_ids] == [None]
    assert leader.told_ends(incarnation).keys().isdisjoint(JobAttempt(job_id, 1) for job_id in job_ids)
    assert {reply.job_id for reply in leader.replies()}.isdisjoint(job_ids)


def _register_another(leader: ScriptedLeader) -> str:
    incarnation = f"other-{uuid4().hex[:8]}"
    limits = WorkerLimits(8, 100, 16, 512, 4, 64)
    leader.database.run(
        lambda c: WorkerRepository(c).register(incarnation, leader.pool, "other", limits, 3600.0)
    )
    return incarnation

"""Every repository method moves a job only as the table of transitions allows."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from db.records import EndedAttempt, JobAttempt, RevisionRow
from db.repositories.adapters import AdapterRepository
from db.repositories.finish import FINISH_STATES
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.states import TRANSITIONS, JobState
from tests.integration.db.ledger import POOL, Ledger

REVISION = "r1"
EMPTIED = (
    "job_inputs",
    "job_outputs",
    "job_keys",
    "attempts",
    "cancellations",
    "jobs",
    "worker_leases",
    "workers",
)
"""TRUNCATE would make new files of every table and index, which takes longer than all that is tested."""


def lease(ledger: Ledger, job_id: UUID) -> None:
    ledger.lease("w1", job_id)


def release(ledger: Ledger, job_id: UUID) -> None:
    ledger.run(LeaseRepository, "release", "w1", [(job_id, 1)])


def lose_unstarted(ledger: Ledger, job_id: UUID) -> None:
    ledger.expire_lease("w1")
    ledger.run(LeaseRepository, "lose_worker", "w1")


def lose_at_the_last_strike(ledger: Ledger, job_id: UUID) -> None:
    ledger.sql("UPDATE jobs SET strikes = 2")
    ledger.run(WorkerRepository, "say_end", "w1", "engine_died", [JobAttempt(job_id, 1)])
    ledger.run(WorkerRepository, "set_state", "w1", "gone")
    ledger.run(LeaseRepository, "lose_worker", "w1")


def cancel(ledger: Ledger, job_id: UUID) -> None:
    ledger.run(JobRepository, "cancel", job_id)


def cancel_then_release(ledger: Ledger, job_id: UUID) -> None:
    ledger.sql("INSERT INTO cancellations (job_id) VALUES (:id)", id=job_id)
    ledger.run(LeaseRepository, "release", "w1", [(job_id, 1)])


def expire(ledger: Ledger, job_id: UUID) -> None:
    ledger.sql("UPDATE jobs SET deadline_at = now()")
    ledger.run(JobRepository, "expire_due", POOL, 10)


def give_up(ledger: Ledger, job_id: UUID) -> None:
    ledger.run(JobRepository, "fail_queued", [job_id], "undeliverable", "nobody got it")


def quarantine(ledger: Ledger, job_id: UUID) -> None:
    ledger.run(AdapterRepository, "add_revision", POOL, "sql", RevisionRow(REVISION, 8, ("q_proj",), 10))
    ledger.run(AdapterRepository, "quarantine", POOL, REVISION, "truncated")
    ledger.run(AdapterRepository, "reject_quarantined", POOL)


def finish_as(state: JobState) -> Callable[[Ledger, UUID], None]:
    def finish(ledger: Ledger, job_id: UUID) -> None:
        ledger.finish("w1", EndedAttempt(job_id, 1, state))

    return finish


Q, L = JobState.QUEUED, JobState.LEASED
MOVES: dict[str, tuple[Callable[[Ledger, UUID], None], dict[JobState, JobState]]] = {
    "lease": (lease, {Q: L}),
    "release": (release, {L: Q}),
    "lose_worker": (lose_unstarted, {L: Q}),
    "lose_worker at the last strike": (lose_at_the_last_strike, {L: JobState.DEAD}),
    "cancel": (cancel, {Q: JobState.CANCELLED}),
    "release after a cancel": (cancel_then_release, {L: JobState.CANCELLED}),
    "expire_due": (expire, {Q: JobState.EXPIRED}),
    "fail_queued": (give_up, {Q: JobState.FAILED}),
    "reject_quarantined": (quarantine, {Q: JobState.REJECTED}),
} | {f"finish as {state}": (finish_as(state), {L: state}) for state in sorted(FINISH_STATES)}


def put_in_state(ledger: Ledger, state: JobState) -> UUID:
    job_id = ledger.admitted(adapter="sql", revision=REVISION)[0]
    ledger.worker()
    if state != Q:
        ledger.sql(
            "UPDATE jobs SET state = :state, attempt = 1, incarnation = 'w1', leased_at = now(),"
            " ended_at = CASE WHEN :state <> 'leased' THEN now() END",
            state=state.value,
        )
    return job_id


@pytest.mark.parametrize("name", MOVES)
def test_a_method_moves_a_job_from_its_own_state_and_from_no_other(name: str, ledger: Ledger) -> None:
    move, moved = MOVES[name]

    for before in JobState:
        for table in EMPTIED:
            ledger.sql(f"DELETE FROM {table}")
        job_id = put_in_state(ledger, before)

        move(ledger, job_id)

        after = ledger.state(job_id)
        assert after == moved.get(before, before), f"{name} took a job from {before} to {after}"
        assert after == before or after in TRANSITIONS[before]


def test_every_transition_of_the_contract_has_a_method() -> None:
    made = {(before, after) for _, moved in MOVES.values() for before, after in moved.items()}

    assert made == {(before, after) for before, nexts in TRANSITIONS.items() for after in nexts}

"""A job has one holder at a time, and a lost holder has no say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import Database
from db.errors import Deposed
from db.judge import Fault, fault_of
from db.records import JobAttempt, WorkerDevice, WorkerEnd
from db.repositories.backlog import BacklogRepository
from db.repositories.finish import FinishRepository
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import BatchJob, HeldJob
from lorayard.contract.states import JobState
from tests.integration.db.ledger import POOL, Ledger, ended
from tests.polling import eventually


def running(job_id: object, attempt: int) -> HeldJob:
    return HeldJob(job_id=job_id, attempt=attempt, running=True)


def strikes_of(ledger: Ledger, job_id: UUID) -> int:
    (row,) = ledger.sql("SELECT strikes FROM jobs WHERE job_id = :id", id=job_id)
    return int(row.strikes)


def die(ledger: Ledger, incarnation: str, end: WorkerEnd, *in_step: BatchJob) -> Any:
    """Have a worker end with a last word, and the leader take its jobs back."""
    pairs = [JobAttempt(job.job_id, job.attempt) for job in in_step]
    ledger.run(WorkerRepository, "report", incarnation, [running(*pair) for pair in pairs])
    ledger.run(WorkerRepository, "say_end", incarnation, end, pairs)
    ledger.run(WorkerRepository, "set_state", incarnation, "gone")
    return ledger.run(LeaseRepository, "lose_worker", incarnation)


def test_a_lease_answers_the_payload_in_the_order_asked_for(ledger: Ledger) -> None:
    first, second, third = ledger.admitted(3)

    leased = ledger.lease(ledger.worker(), third, first)

    assert [(job.job_id, job.attempt, job.request["prompt"]) for job in leased] == [
        (third, 1, "hello"),
        (first, 1, "hello"),
    ]
    assert ledger.state(second) == JobState.QUEUED
    assert ledger.get(first).worker == "host-w1"


def test_of_two_leasers_one_wins_each_job(ledger: Ledger) -> None:
    jobs = ledger.admitted(100)
    workers = [ledger.worker(f"w{number}") for number in range(4)]

    with ThreadPoolExecutor(4) as threads:
        shares = list(
            threads.map(
                lambda pair: ledger.lease(pair[1], *jobs[:: pair[0]]),
                zip((1, -1, 1, -1), workers, strict=True),
            )
        )

    assert sorted(job.job_id for share in shares for job in share) == sorted(jobs)
    assert {job.attempt for share in shares for job in share} == {1}


def test_a_worker_that_is_not_ready_gets_nothing(ledger: Ledger) -> None:
    job = ledger.admitted()[0]
    draining, expired = ledger.worker("draining"), ledger.worker("expired")
    ledger.run(WorkerRepository, "set_state", draining, "draining")
    ledger.expire_lease(expired)

    assert [ledger.lease(name, job) for name in (draining, expired, "unknown")] == [[], [], []]


def test_an_unhealthy_worker_gets_nothing_and_its_lease_ends_like_any(ledger: Ledger) -> None:
    (job,) = ledger.admitted()
    card = WorkerDevice("cuda:0", "NVIDIA H200", 150_000_000_000, "580.65.06", "2.11.0+cu130")
    ledger.worker("ill", device=card, unhealthy="its device failed 3 times")

    row = ledger.run(WorkerRepository, "get", "ill")
    leased = ledger.lease("ill", job)
    renewed = ledger.run(WorkerRepository, "renew", "ill", 60.0)
    ready = ledger.run(LeaseRepository, "ready_workers", POOL)
    ledger.expire_lease("ill")
    silent = ledger.run(LeaseRepository, "expired_workers", POOL)
    lost = ledger.run(LeaseRepository, "lose_worker", "ill")

    assert (row.state, row.device, row.reason) == ("unhealthy", card, "its device failed 3 times")
    assert (leased, renewed, ready) == ([], True, [])
    assert [worker.incarnation for worker in silent] == ["ill"]
    assert lost.lost
    assert ledger.run(WorkerRepository, "get", "ill").state == "lost"


def test_an_unhealthy_worker_can_leave(ledger: Ledger) -> None:
    ledger.worker("ill", unhealthy="its device failed 3 times")

    assert ledger.run(WorkerRepository, "set_state", "ill", "gone")

    assert ledger.run(WorkerRepository, "listed") == []


def test_a_job_past_its_deadline_or_of_another_pool_is_passed_over(ledger: Ledger) -> None:
    late = ledger.admitted(deadline_s=1.0, waited_ms=2000.0)[0]
    foreign = ledger.admitted()[0]
    ledger.sql("UPDATE jobs SET pool = 'other' WHERE job_id = :id", id=foreign)

    assert ledger.lease(ledger.worker(), late, foreign) == []


def test_a_deposed_leader_leases_nothing(ledger: Ledger) -> None:
    job = ledger.admitted()[0]
    ledger.sql("UPDATE scheduler_terms SET expires_at = now()")
    ledger.run(TermRepository, "take", POOL, "other", 10.0)

    with pytest.raises(Deposed, match="another scheduler leads"):
        ledger.lease(ledger.worker(), job)

    assert ledger.state(job) == JobState.QUEUED


def test_a_released_job_waits_again_without_a_strike_and_its_old_holder_is_fenced(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())

    released = ledger.run(LeaseRepository, "release", "w1", [(job.job_id, job.attempt)])
    again = ledger.lease("w1", job.job_id)[0]

    assert released.requeued == (JobAttempt(job.job_id, 1),)
    assert (again.attempt, strikes_of(ledger, again.job_id)) == (2, 0)
    assert ledger.finish("w1", ended(job)) == []
    assert ledger.state(job.job_id) == JobState.LEASED
    assert ledger.sql("SELECT attempt, ended FROM attempts") == [(1, "released")]


def test_only_the_holder_at_this_attempt_can_release(ledger: Ledger) -> None:
    ledger.worker("w2")
    job = ledger.leased(ledger.worker())

    for incarnation, attempt in (("w2", 1), ("w1", 2), ("w1", 0)):
        released = ledger.run(LeaseRepository, "release", incarnation, [(job.job_id, attempt)])
        assert (released.requeued, released.finished) == ((), ())

    assert ledger.state(job.job_id) == JobState.LEASED


def test_a_vanished_workers_jobs_have_one_loss_free_and_are_suspects_at_the_second(ledger: Ledger) -> None:
    ran, waited = ledger.admitted(2)
    groups = []
    for name in ("w1", "w2"):
        first, second = ledger.lease(ledger.worker(name), ran, waited)
        held = [running(ran, first.attempt), HeldJob(job_id=waited, attempt=second.attempt, running=False)]
        ledger.run(WorkerRepository, "report", name, held)
        ledger.expire_lease(name)
        assert [row.incarnation for row in ledger.run(LeaseRepository, "expired_workers", POOL)] == [name]
        lost = ledger.run(LeaseRepository, "lose_worker", name)
        assert {pair.job_id for pair in lost.requeued} == {ran, waited}
        groups.append([row.group for row in ledger.run(BacklogRepository, "queued_after", POOL, 0, 10)])

    assert groups[0] == [None, None]
    assert len({*groups[1]} - {None}) == 2
    assert [tuple(row) for row in ledger.sql("SELECT strikes, losses FROM jobs")] == [(0, 2), (0, 2)]
    assert ledger.run(LeaseRepository, "expired_workers", POOL) == []
    assert not ledger.run(WorkerRepository, "renew", "w2")


def test_rows_of_the_step_that_ended_an_engine_are_suspects_and_their_neighbours_are_not(
    ledger: Ledger,
) -> None:
    one, two, waiting = ledger.lease(ledger.worker(), *ledger.admitted(3))

    lost = die(ledger, "w1", "engine_died", one, two)

    assert len(lost.requeued) == 3
    groups = {row.job_id: row.group for row in ledger.run(BacklogRepository, "queued_after", POOL, 0, 10)}
    assert groups[waiting.job_id] is None
    assert len({groups[one.job_id], groups[two.job_id], None}) == 3
    assert {strikes_of(ledger, job.job_id) for job in (one, two, waiting)} == {0}


def test_a_lost_card_is_no_jobs_fault_and_a_consumer_that_failed_is_a_loss(ledger: Ledger) -> None:
    job_id = ledger.admitted()[0]
    seen = []
    for name, end in (("w1", "device_lost"), ("w2", "consumer_failed")):
        die(ledger, name, end, *ledger.lease(ledger.worker(name), job_id))  # type: ignore[arg-type]
        seen += ledger.sql("SELECT strikes, losses, suspect_group FROM jobs")

    assert [tuple(row) for row in seen] == [(0, 0, None), (0, 1, None)]


def test_a_host_whose_engine_died_twice_without_an_ended_job_is_in_doubt_until_one_has_ended(
    ledger: Ledger,
) -> None:
    for name in ("w1", "w2"):
        die(ledger, name, "engine_died", *ledger.lease(ledger.worker(name, host="h"), *ledger.admitted(2)))
    doubtful = ledger.run(WorkerRepository, "get", ledger.worker("w3", host="h"))
    elsewhere = ledger.run(WorkerRepository, "get", ledger.worker("w4", host="other"))

    before = ledger.sql("SELECT strikes, losses, suspect_group FROM jobs ORDER BY job_id")
    (canary,) = ledger.lease("w3", ledger.admitted()[0])
    die(ledger, "w3", "engine_died", canary)
    assert strikes_of(ledger, canary.job_id) == 0
    assert ledger.sql("SELECT suspect_group FROM jobs WHERE job_id = :id", id=canary.job_id) == [(None,)]
    ledger.worker("w5", host="h")
    ledger.run(WorkerRepository, "report", "w5", [], 1)
    proven = ledger.run(WorkerRepository, "get", "w5")

    assert doubtful.canary is not None
    assert "died 2 times without one ended job" in doubtful.canary.reason
    assert (elsewhere.canary, proven.canary) == (None, None)
    assert all(row.suspect_group is not None for row in before)


def test_an_engine_that_died_idle_is_remembered_and_a_worker_that_drained_is_not(ledger: Ledger) -> None:
    for name, end in (("w1", "engine_died"), ("w2", "drained")):
        ledger.run(WorkerRepository, "say_end", ledger.worker(name, host=name), end)
        ledger.run(WorkerRepository, "set_state", name, "gone")

    silent = ledger.run(LeaseRepository, "expired_workers", POOL)
    for row in silent:
        ledger.run(LeaseRepository, "lose_worker", row.incarnation)

    assert [row.incarnation for row in silent] == ["w1"]
    assert ledger.sql("SELECT host, in_a_row FROM worker_hosts") == [("w1", 1)]
    assert ledger.run(LeaseRepository, "expired_workers", POOL) == []


def test_a_worker_that_renewed_in_time_is_not_lost(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())

    lost = ledger.run(LeaseRepository, "lose_worker", "w1")

    assert not lost.lost
    assert ledger.state(job.job_id) == JobState.LEASED


def test_a_lost_workers_late_finish_adds_nothing_but_wasted_time(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url="https://example.com/hook")
    ledger.expire_lease("w1")
    ledger.run(LeaseRepository, "lose_worker", "w1")

    assert ledger.finish("w1", ended(job, output="late", device_ms=9.0)) == []

    assert ledger.state(job.job_id) == JobState.QUEUED
    assert ledger.sql("SELECT jobs, completion_tokens, device_ms, wasted_device_ms FROM usage_deltas") == [
        (0, 0, 0.0, 9.0)
    ]
    assert ledger.sql("SELECT * FROM job_outputs") == []
    assert ledger.sql("SELECT * FROM webhook_deliveries") == []
    assert ledger.sql("SELECT ended FROM attempts") == [("lost",)]


def test_the_third_strike_is_death_with_a_webhook(ledger: Ledger) -> None:
    job_id = ledger.admitted(callback_url="https://example.com/hook")[0]

    for number in (1, 2, 3):
        worker = ledger.worker(f"w{number}")
        job = ledger.lease(worker, job_id)[0]
        assert (job.attempt, strikes_of(ledger, job.job_id)) == (number, number - 1)
        lost = die(ledger, worker, "engine_died", job)

    assert lost.requeued == ()
    assert [(dead.state, dead.result.error.code) for dead in lost.finished] == [
        (JobState.DEAD, "worker_crashed")
    ]
    assert "alone, 3 times (last on host-w3)" in lost.finished[0].result.error.message
    assert ledger.sql("SELECT event_type FROM webhook_deliveries") == [("job.dead",)]
    assert ledger.sql("SELECT ended FROM attempts ORDER BY attempt") == [("lost",), ("lost",), ("dead",)]


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_the_fifth_loss_is_death_if_two_hosts_have_seen_one(ledger: Ledger, num_hosts: int) -> None:
    ledger.worker("bystander", host="bystander")
    job_id = ledger.admitted()[0]
    ended: list[Any] = []

    for number in range(5):
        name = ledger.worker(f"w{number}", host=f"h{number % num_hosts}")
        ledger.run(WorkerRepository, "report", name, [], 1)  # a sound host: it has ended a job
        assert len(ledger.lease(name, job_id)) == 1
        ledger.expire_lease(name)
        ended += ledger.run(LeaseRepository, "lose_worker", name).finished

    assert [job.state for job in ended] == [JobState.DEAD] * (num_hosts - 1)
    if ended:
        assert "5 workers were lost with it (last on host-w4)" in ended[0].result.error.message


def test_what_a_departed_worker_forgot_is_taken_back(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    assert ledger.run(WorkerRepository, "set_state", "w1", "gone")

    expired = ledger.run(LeaseRepository, "expired_workers", POOL)
    lost = ledger.run(LeaseRepository, "lose_worker", expired[0].incarnation)

    assert lost.requeued == (JobAttempt(job.job_id, 1),)
    assert ledger.run(LeaseRepository, "expired_workers", POOL) == []


def test_losing_a_worker_while_it_finishes_moves_every_job_once(ledger: Ledger) -> None:
    for round_ in range(10):
        worker = ledger.worker(f"w{round_}")
        jobs = ledger.lease(worker, *ledger.admitted(8))
        ledger.expire_lease(worker)
        with ThreadPoolExecutor(2) as threads:
            done = threads.submit(ledger.finish, worker, *map(ended, jobs))
            lost = threads.submit(ledger.run, LeaseRepository, "lose_worker", worker)

        assert (len(done.result()), len(lost.result().requeued)) in ((8, 0), (0, 8))


def test_a_heartbeat_tells_what_is_cancelled_and_what_is_no_longer_held(ledger: Ledger) -> None:
    kept, cancelled, released = ledger.lease(ledger.worker(), *ledger.admitted(3))
    ledger.run(JobRepository, "cancel", cancelled.job_id)
    ledger.run(LeaseRepository, "release", "w1", [(released.job_id, 1)])

    renewed = ledger.run(WorkerRepository, "renew", "w1")
    aborts = ledger.run(
        WorkerRepository, "aborts", "w1", [running(job.job_id, 1) for job in (kept, cancelled, released)]
    )

    assert renewed
    assert aborts.cancelled == (cancelled.job_id,)
    assert aborts.not_mine == (JobAttempt(released.job_id, 1),)


def test_an_expired_lease_can_be_renewed_until_the_leader_acts(ledger: Ledger) -> None:
    ledger.worker()
    ledger.expire_lease("w1")

    assert ledger.run(WorkerRepository, "renew", "w1")
    assert [row.incarnation for row in ledger.run(LeaseRepository, "ready_workers", POOL)] == ["w1"]
    assert not ledger.run(WorkerRepository, "renew", "never-registered")


def test_the_leased_rows_name_their_holders(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), adapter="sql", revision="r1", tenant="acme")

    rows = ledger.run(BacklogRepository, "leased", POOL)

    assert [(row.job_id, row.attempt, row.incarnation, row.revision, row.tenant) for row in rows] == [
        (job.job_id, 1, "w1", "r1", "acme")
    ]


def test_a_renewal_waits_neither_for_a_dispatch_nor_for_a_finish(ledger: Ledger, database_url: str) -> None:
    first, second = ledger.lease(ledger.worker(), *ledger.admitted(2))
    waiting = ledger.admitted()
    hasty = Database(database_url, pool_size=1, lock_timeout_ms=100)

    with ledger.database.transaction() as dispatch, ledger.database.transaction() as finish:
        assert LeaseRepository(dispatch).lease(POOL, "w1", waiting, term=ledger.term)
        assert hasty.run(lambda c: WorkerRepository(c).renew("w1"))
        dispatch.rollback()
        assert FinishRepository(finish).finish("w1", 0, [ended(first), ended(second)])
        assert hasty.run(lambda c: WorkerRepository(c).renew("w1"))
    hasty.dispose()


@pytest.mark.parametrize("mode", ["SHARE", "ACCESS EXCLUSIVE"])
def test_nobody_is_called_lost_through_a_lock_that_keeps_renewals_out(ledger: Ledger, mode: str) -> None:
    job = ledger.leased(ledger.worker())
    ledger.expire_lease("w1")

    with ledger.database.transaction() as holder:
        holder.execute(text(f"LOCK TABLE worker_leases IN {mode} MODE"))
        with pytest.raises(DBAPIError) as raised:
            ledger.run(LeaseRepository, "lose_worker", "w1")

    assert fault_of(raised.value) is Fault.SERVER
    assert ledger.run(WorkerRepository, "renew", "w1")
    assert ledger.state(job.job_id) == JobState.LEASED


def test_a_verdict_waits_for_a_dispatch_and_takes_its_jobs_back_as_well(ledger: Ledger) -> None:
    ledger.worker(lease_s=0.3)
    (job_id,) = ledger.admitted()

    with ThreadPoolExecutor(1) as threads:
        with ledger.database.transaction() as dispatch:
            assert LeaseRepository(dispatch).lease(POOL, "w1", [job_id], term=ledger.term)
            eventually(lambda: ledger.run(LeaseRepository, "expired_workers", POOL))
            lost = threads.submit(ledger.run, LeaseRepository, "lose_worker", "w1")
            eventually(lambda: ledger.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        verdict = lost.result(10)

    assert [pair.job_id for pair in verdict.requeued] == [job_id]


def test_nothing_more_goes_to_a_worker_whose_lease_says_lost(ledger: Ledger) -> None:
    job_id = ledger.admitted()[0]
    ledger.worker()
    ledger.sql("UPDATE worker_leases SET lost = true")

    assert ledger.lease("w1", job_id) == []
    assert ledger.run(LeaseRepository, "ready_workers", POOL) == []
    assert not ledger.run(WorkerRepository, "renew", "w1")

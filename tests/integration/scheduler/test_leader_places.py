"""The leader fails at any of its places for ever, and the rest of its turn goes on: it is turned by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from db.records import CancelOutcome, TenantQuota
from db.repositories.jobs import JobRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import AdapterFailure, Command, HeldJob, Residency, WorkerEvent
from lorayard.contract.states import JobState
from lorayard.process.stop_request import StopRequest
from scheduler.control import Control
from scheduler.fleet import Fleet
from scheduler.forecast import Forecast
from scheduler.item_failures import CHORE, ItemFailures
from scheduler.leader import Leader
from scheduler.periodic import PeriodicTask, PeriodicTasks
from scheduler.policies import AdapterPlan
from scheduler.process import Scheduler
from scheduler.quarantine import Quarantine
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.rounds import Rounds
from scheduler.term import TermKeeper
from scheduler.worker_commands import WorkerCommands
from scheduler.worker_events import WorkerEvents
from scheduler.worker_state import Outstanding, WorkerState
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import LIMITS
from tests.integration.scheduler.trips import Trips
from tests.unit.scheduler.test_leader_places import CHORES, NEEDED, OF_OTHERS

NOW: Final = 100.0

NEEDED_WORK: Final[dict[str, tuple[type[Any], str]]] = {
    "reaper": (Reaper, "reap"),
    "queue": (QueueFeed, "fill"),
    "dispatch": (Rounds, "run"),
}


@pytest.fixture
def leader(rig: PoolRig) -> Iterator[Leader]:
    """A leader that does nothing by itself, for which no time passes."""
    process = Scheduler(rig.settings(), clock=lambda: NOW)
    keeper = TermKeeper.take(process._terms, rig.pool, "test", 3600.0, on_broken=lambda _thread: None)
    assert keeper is not None
    leader = process._leader(keeper)
    yield leader
    leader.close()
    process._app.close()
    process._redis.close()
    process._database.dispose()
    process._terms.dispose()


def join(rig: PoolRig, *incarnations: str) -> None:
    """Enter workers into the ledger; what they are sent stays unread."""
    with rig.database.transaction() as connection:
        for name in incarnations:
            WorkerRepository(connection).register(name, rig.pool, name, LIMITS, 3600.0)


def commands(rig: PoolRig, incarnation: str) -> list[Command]:
    """Read what a worker was told."""
    entries: Any = rig.redis.xrange(rig.keys.commands(incarnation))
    return [Command.from_entry(entry) for _, entry in entries]


def known(leader: Leader, incarnation: str) -> WorkerState:
    """Find a worker that the leader must know."""
    worker = leader.fleet.find(incarnation)
    assert worker is not None
    return worker


def fail_chores(monkeypatch: pytest.MonkeyPatch, chores: set[str]) -> None:
    """Have chores fail as soon as they begin."""
    attempt = ItemFailures.attempt

    def attempt_or_fail(
        items: ItemFailures, part: str, item: str, work: Callable[[], object], *rest: Any
    ) -> bool:
        def fail() -> None:
            raise KeyError(f"told to fail at {item}")

        return attempt(items, part, item, fail if part == CHORE and item in chores else work, *rest)

    monkeypatch.setattr(ItemFailures, "attempt", attempt_or_fail)


@pytest.mark.parametrize("failing", [CHORES - set(OF_OTHERS), set(OF_OTHERS)], ids=["inner", "outer"])
def test_jobs_are_admitted_and_dispatched_though_every_chore_fails(
    rig: PoolRig, leader: Leader, monkeypatch: pytest.MonkeyPatch, failing: set[str]
) -> None:
    fail_chores(monkeypatch, failing)
    join(rig, "worker")
    leader.recover()
    leader.periodic = PeriodicTasks(**{task.name: PeriodicTask(0.0) for task in fields(PeriodicTasks)})
    for _ in range(4):
        job_ids = rig.submit(2)
        leader.turn()
        leader.turn()
        rig.wait_for(JobState.LEASED, *job_ids)
    leader.events.quarantine._set_aside.add("sha256:bad")
    for _ in range(3):
        (waiting,) = rig.submit()
        leader._deal_with(leader.streams.read(None))
        leader.events.take_in([waiting])

    items = leader.context.items
    assert {name for name in CHORES if items.is_resting(CHORE, name)} == failing
    if "publish" not in failing:
        leader.publisher.publish()
        shown: Any = rig.redis.hget(rig.keys.admission, "items_put_aside")
        assert int(shown) == items.num_put_aside[CHORE] == len(failing)


@pytest.mark.parametrize("part", sorted(NEEDED))
def test_a_term_ends_after_three_restarts_without_what_nothing_is_served_without(
    leader: Leader, trips: Trips, part: str
) -> None:
    trips.at(*NEEDED_WORK[part])

    with capture_logs() as log:
        assert not leader.lead(StopRequest(), lambda: None)

    assert [line["event"] for line in log].count("leader.failed") == 4
    assert {line["part"] for line in log if line["event"] == "leader.part_failed"} == {part}


def test_what_fails_for_one_worker_is_done_for_the_others(rig: PoolRig, leader: Leader, trips: Trips) -> None:
    join(rig, "bad", "good", "idle", "sick")
    trips.at(Fleet, "_take_in", "sick")
    leader.recover()
    trips.at(WorkerEvents, "judge_hearing", "bad")
    trips.at(WorkerCommands, "_command", "bad")
    trips.at(Control, "_command", "bad")
    trips.at(Fleet, "get", "bad")
    trips.at(WorkerRepository, "get", "bad")
    items, fleet = leader.context.items, leader.fleet
    assert {worker.incarnation for worker in fleet.ready()} == {"bad", "good", "idle"}

    for _ in range(3):
        leader._judge_hearing()
    assert items.is_resting("worker_hearing", "bad")
    assert not items.is_resting("worker_hearing", "good")

    leader.instructions.draining = ("bad", "good")
    for _ in range(3):
        leader.commands.send()
    assert [command.kind for command in commands(rig, "good")] == ["drain"]
    assert items.is_resting("worker_drain", "bad")

    for number, name in enumerate(("bad", "good")):
        worker, jobs = known(leader, name), [UUID(int=10 * number + n) for n in range(10)]
        for job_id in jobs:
            worker.give(job_id, Outstanding(1, None, 40, is_suspect=False, dispatched_at=NOW - 10.0))
        held = [HeldJob(job_id=job_id, attempt=1, running=n < 8) for n, job_id in enumerate(jobs)]
        worker.reconcile(held, NOW)
    leader.commands.send()
    assert [command.kind for command in commands(rig, "good")] == ["drain", "recall"]

    leader.commands.lookahead = lambda *_: [AdapterPlan(name, ("sha256:a",)) for name in ("bad", "good")]
    for name in ("bad", "good"):
        known(leader, name).note_residency(1, [], is_whole=True)
    leader.commands.send()
    assert [command.kind for command in commands(rig, "good")][2:] == ["prefetch"]

    met = [
        (UUID(int=n), CancelOutcome(JobState.LEASED, incarnation=name))
        for n, name in ((0, "bad"), (10, "good"))
    ]
    leader.control._follow(met)
    assert [command.kind for command in commands(rig, "good")][3:] == ["cancel"]

    for name in ("bad", "good"):
        event = WorkerEvent(incarnation=name, free_seqs=1, free_kv_blocks=1, draining=True)
        rig.redis.xadd(rig.keys.worker_events, event.to_entry())
    leader._deal_with(leader.streams.read(None))
    assert {one.incarnation for one in fleet.ready() if one.is_draining} == {"good"}
    assert rig.redis.xlen(rig.keys.worker_events) == 0

    with rig.database.transaction() as connection:
        for name in ("bad", "good"):
            WorkerRepository(connection).set_state(name, "gone")
    leader.reaper.reap(NOW, is_idle=False)
    leader.reaper.forget_departed()
    assert (fleet.find("good"), fleet.find("bad") is None) == (None, False)


def test_what_fails_for_one_adapter_or_tenant_is_done_for_the_others(
    rig: PoolRig, leader: Leader, trips: Trips
) -> None:
    revisions = [rig.add_adapter(name) for name in ("a", "b", "c")]
    told = [AdapterFailure(revision=one, code="shape", message="8", retryable=False) for one in revisions]
    join(rig, "bad", "good")
    leader.recover()
    leader.reaper.reap(NOW, is_idle=False)
    quarantine, worker = leader.events.quarantine, known(leader, "good")
    trips.at(Quarantine, "_set_aside_revision", told[0])
    trips.at(Quarantine, "_have_loaded", "bad")
    trips.at(Quarantine, "_lift", revisions[1])
    trips.at(Forecast, "tenant_retry_after_s", "bad")

    quarantine.judge(worker, told, NOW)
    assert set(quarantine.revisions) == set(revisions[1:])

    leader.reaper.reap(NOW, is_idle=False)
    quarantine._retries.hasten()
    quarantine.try_again()
    assert [command.kind for command in commands(rig, "good")] == ["prefetch"]

    there = [Residency(revision=revision, tier="host") for revision in revisions[1:]]
    quarantine.note_loads(worker, worker.note_residency(1, there, is_whole=True), NOW)
    leader.reaper.reap(NOW, is_idle=False)
    assert set(quarantine.revisions) == {revisions[1]}

    leader.instructions.quotas = (TenantQuota("bad", 3), TenantQuota("good", 3))
    leader.publisher.publish()
    assert set(rig.redis.hkeys(rig.keys.quotas)) == {b"good"}


def test_what_fails_for_one_job_is_done_for_the_others(rig: PoolRig, leader: Leader, trips: Trips) -> None:
    leader.recover()
    bad, good, late, later = job_ids = rig.submit(4, deadline_s=600.0)
    leader.turn()
    trips.at(JobRepository, "fail_queued", bad)
    trips.at(JobRepository, "expire_infeasible", late)
    trips.at(Fleet, "outstanding", bad)
    waiting = {job.job_id: job for job in leader.queue.backlog.jobs()}

    for job_id in (bad, good):
        leader.queue.put_aside(job_id)
    leader.endings.end_put_aside()
    leader.queue.backlog._hopeless += [waiting[late], waiting[later]]
    leader.endings.end_hopeless()
    states = [(found := rig.get(job_id)) and found.state for job_id in job_ids]
    assert states == [JobState.QUEUED, JobState.FAILED, JobState.QUEUED, JobState.EXPIRED]

    join(rig, "worker")
    leader.reaper.reap(NOW, is_idle=False)
    leader.turn()
    rig.wait_for(JobState.LEASED, bad, late)
    leader.recover()
    assert set(known(leader, "worker").outstanding) == {late}

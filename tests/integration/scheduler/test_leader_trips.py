"""The leader fails at one item of each kind, for ever: that item is put aside, and all others are served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from db.repositories.workers import WorkerRepository
from lorayard.contract.states import JobState
from scheduler import leader
from scheduler.adapter_collector import AdapterCollector
from scheduler.admission_publisher import AdmissionPublisher
from scheduler.control import Control
from scheduler.dispatch import Dispatcher
from scheduler.endings import Endings
from scheduler.housekeeping import Housekeeping
from scheduler.instructions import Instructions
from scheduler.intake import Intake
from scheduler.periodic import PeriodicTask, PeriodicTasks
from scheduler.policies.worker_budget import WorkerBudget
from scheduler.quarantine import Quarantine
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.retention import Retention
from scheduler.shares import Shares
from scheduler.worker_commands import WorkerCommands
from scheduler.worker_events import WorkerEvents
from scheduler.worker_state import WorkerState
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold
from tests.integration.scheduler.trips import Trips
from tests.polling import eventually

SERVED_WITHIN_S = 10.0


def puts_aside(log: Any, part: str, item: str) -> Callable[[], bool]:
    """Whether an item of a part was put aside, by the log."""
    return lambda: any(
        line["event"] == "leader.item_put_aside" and line["part"] == part and item in line["item"]
        for line in log
    )


def num_put_aside(rig: PoolRig) -> int:
    """How many items the scheduler says that it has put aside."""
    return int(cast("bytes", rig.redis.hget(rig.keys.admission, "items_put_aside")))


def test_jobs_and_entries_at_which_the_leader_fails_are_put_aside(rig: PoolRig, trips: Trips) -> None:
    at_intake, at_queue, at_plan, at_dispatch = (rig.envelope() for _ in range(4))
    (asked, others) = rig.envelope(), [rig.envelope() for _ in range(20)]
    trips.at(Intake, "_offer", at_intake.job_id)
    trips.at(QueueFeed, "_pending", at_queue.job_id)
    trips.at(WorkerBudget, "place", at_plan.job_id)
    trips.at(Dispatcher, "_outstanding", at_dispatch.job_id)
    trips.at(Control, "_answer", asked.job_id)
    failing = [at_queue.job_id, at_plan.job_id, at_dispatch.job_id]

    with capture_logs() as log, rig.scheduler(), ScriptedWorker(rig):
        rig.send(at_intake, at_queue, *others[:10], at_plan, at_dispatch, *others[10:])
        rig.ask("lookup", asked.job_id)
        answered = rig.ask("lookup", others[0].job_id)
        rig.wait_for(JobState.SUCCEEDED, *(other.job_id for other in others), timeout_s=SERVED_WITHIN_S)
        rig.reply(request_id=answered)
        rig.wait_for(JobState.FAILED, *failing, timeout_s=30.0)
        told = rig.reply(job_id=at_intake.job_id)
        eventually(lambda: len(rig.sql("SELECT 1 FROM intake_rejects")) == 2, 30.0)
        eventually(rig.intake_is_empty)
        for part, job_id in (("queue", at_queue.job_id), ("dispatch", at_plan.job_id)):
            assert puts_aside(log, part, str(job_id))()
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(5))
        eventually(lambda: num_put_aside(rig) == 5, 10.0, "the published figure")

    assert {_code(rig, job_id) for job_id in failing} == {"internal"}
    assert told.state is JobState.REJECTED
    assert len(trips.tripped) == 5
    assert not [line for line in log if line["event"] == "leader.failed"], "nothing was read anew"


def test_workers_at_which_the_leader_fails_rest_and_the_others_serve(rig: PoolRig, trips: Trips) -> None:
    with capture_logs() as log, rig.scheduler():
        with ScriptedWorker(rig, hold) as doomed, ScriptedWorker(rig, hold) as lost:
            eventually(lambda: (rig.submit(2), doomed.held and lost.held)[1])
        stays, goes = list(doomed.held), list(lost.held)
        trips.at(Reaper, "_lose", doomed.incarnation)
        doomed.run_out()
        lost.run_out()
        with ScriptedWorker(rig) as unseen, ScriptedWorker(rig) as unheard, ScriptedWorker(rig) as sound:
            trips.at(WorkerState, "view", unseen.incarnation)
            trips.at(WorkerEvents, "_take", unheard.incarnation)
            rig.wait_for(JobState.SUCCEEDED, *goes, *rig.submit(20), timeout_s=30.0)
            for part, worker in (("worker_view", unseen), ("worker_events", unheard)):
                eventually(puts_aside(log, part, worker.incarnation), 30.0)
            before = len(unseen.jobs) + len(unheard.jobs)
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(20), timeout_s=SERVED_WITHIN_S)
            assert len(unseen.jobs) + len(unheard.jobs) == before
            assert len(sound.jobs) >= 20
        rig.wait_for(JobState.LEASED, *stays)

    assert len(trips.tripped) == 3


CHORES: dict[str, tuple[tuple[type[Any], str], ...]] = {
    "whole": (
        (AdmissionPublisher, "publish"),
        (AdmissionPublisher, "publish_pool"),
        (AdapterCollector, "sweep"),
        (Control, "revoke"),
        (Housekeeping, "fold_usage"),
        (Instructions, "refresh"),
        (QueueFeed, "verify"),
        (Reaper, "forget_departed"),
        (Retention, "delete_batch"),
        (Shares, "refresh"),
        (WorkerCommands, "send"),
    ),
    "in part": (
        (Endings, "end_hopeless"),
        (Endings, "end_put_aside"),
        (Quarantine, "follow_catalogue"),
        (Quarantine, "try_again"),
        (Shares, "restore"),
        (WorkerCommands, "_drain"),
        (WorkerCommands, "_look_ahead"),
        (WorkerCommands, "_recall"),
    ),
}


@pytest.mark.parametrize("failing", CHORES.values(), ids=CHORES)
def test_chores_that_fail_for_ever_keep_nothing_from_its_turn(
    rig: PoolRig,
    trips: Trips,
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[tuple[type[Any], str], ...],
) -> None:
    cancelled = rig.envelope()
    trips.at(Endings, "_tell", cancelled.job_id)
    trips.at(Reaper, "_clear_away")
    for owner, name in failing:
        trips.at(owner, name)
    monkeypatch.setattr(leader, "PeriodicTasks", often)
    with capture_logs() as log, rig.scheduler():
        rig.send(cancelled)
        rig.wait_for(JobState.QUEUED, cancelled.job_id)
        rig.reply(request_id=rig.ask("cancel", cancelled.job_id))
        rig.wait_for(JobState.CANCELLED, cancelled.job_id)
        with ScriptedWorker(rig):
            with ScriptedWorker(rig) as leaving:
                rig.wait_for(JobState.SUCCEEDED, *rig.submit(10))
            rig.database.run(lambda c: WorkerRepository(c).set_state(leaving.incarnation, "gone"))
            eventually(lambda: len(put_aside(log, "chore")) == len(failing), what="all at rest")
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(10), timeout_s=SERVED_WITHIN_S)

    assert len(trips.tripped) >= len(failing) + 1
    assert not [line for line in log if line["event"] == "leader.failed"], "nothing was read anew"


def often() -> PeriodicTasks:
    """Have all that recurs do so many times a second."""
    return PeriodicTasks(**{task.name: PeriodicTask(0.05) for task in fields(PeriodicTasks)})


def put_aside(log: Any, part: str) -> set[str]:
    """Name the items of a part that were put aside, by the log."""
    return {line["item"] for line in log if line["event"] == "leader.item_put_aside" and line["part"] == part}


def _code(rig: PoolRig, job_id: UUID) -> str | None:
    result = rig.get(job_id)
    return result.error.code if result and result.error else None

"""Threads of a scheduler and its leader's loop fail: once, and service goes on; forever, and it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.repositories.adapters import AdapterRepository
from lorayard.contract.states import JobState
from lorayard.process.service_thread import ServiceThread
from lorayard.server.adapter_store import make_store, revision_folder
from scheduler.control import Control
from scheduler.housekeeping import Housekeeping
from scheduler.leader import Leader
from scheduler.worker_events import WorkerEvents
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.polling import eventually

OBSERVERS = ("adapter-files", "flower", "revokes")


class Fault:
    """Stands before one function and raises, so many times."""

    def __init__(self, function: Callable[..., Any], times: float, wanted: Callable[..., bool]) -> None:
        self.left = times
        self.num_raised = 0
        self.num_calls = 0
        self._function = function
        self._wanted = wanted

    def __get__(self, instance: Any, owner: type[Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._call(instance, *args, **kwargs)

    def _call(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        if self.left > 0 and self._wanted(instance):
            self.left -= 1
            self.num_raised += 1
            raise KeyError("told to fail")
        return self._function(instance, *args, **kwargs)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fault]:
    """Have a function raise, for the instances wanted."""

    def put(owner: type[Any], name: str, times: float, wanted: Callable[..., bool] = lambda _: True) -> Fault:
        made = Fault(getattr(owner, name), times, wanted)
        monkeypatch.setattr(owner, name, made)
        return made

    return put


def thread_fault(fault: Callable[..., Fault], thread: str, times: float) -> Fault:
    return fault(ServiceThread, "run_step", times, lambda one: one.name == thread)


@pytest.mark.parametrize("thread", ["term", *OBSERVERS])
def test_a_thread_that_fails_once_goes_on(
    rig: PoolRig, fault: Callable[..., Fault], tmp_path: Path, thread: str
) -> None:
    failing = thread_fault(fault, thread, 1)
    with rig.scheduler(adapter_store=tmp_path), ScriptedWorker(rig):
        eventually(lambda: failing.num_raised == 1, 20.0, "the failure")

        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))


@pytest.mark.parametrize("thread", OBSERVERS)
def test_an_observer_that_fails_for_ever_ends_nothing(
    rig: PoolRig, fault: Callable[..., Fault], tmp_path: Path, thread: str
) -> None:
    failing = thread_fault(fault, thread, float("inf"))
    with rig.scheduler(adapter_store=tmp_path) as scheduler, ScriptedWorker(rig):
        eventually(lambda: failing.num_raised >= 4, 20.0, "the last restart")

        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))
        assert scheduler.is_running


def test_adapter_files_are_removed_although_their_thread_failed_once(
    rig: PoolRig, fault: Callable[..., Fault], tmp_path: Path
) -> None:
    digest = rig.add_adapter("old")
    make_store(tmp_path)
    folder = revision_folder(tmp_path, digest)
    folder.mkdir()
    rig.database.run(lambda c: AdapterRepository(c).remove(rig.pool, "old"))
    rig.sql("UPDATE adapter_revisions SET state = 'collecting', unused_since = now() - interval '31 days'")
    failing = thread_fault(fault, "adapter-files", 1)

    with rig.scheduler(adapter_store=tmp_path):
        eventually(lambda: not folder.exists(), 20.0, "the end of the sweep")

    assert failing.num_raised == 1
    assert not any(thread.name == "adapter-files" for thread in threading.enumerate())


def test_a_term_that_cannot_be_kept_ends_the_scheduler(rig: PoolRig, fault: Callable[..., Fault]) -> None:
    failing = thread_fault(fault, "term", float("inf"))
    with rig.scheduler() as scheduler:
        eventually(lambda: not scheduler.is_running, 30.0, "the scheduler's end")
        assert scheduler.served is False

    failing.left = 0
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *rig.submit())  # it has resigned


def test_a_leader_that_fails_once_goes_on(rig: PoolRig, fault: Callable[..., Fault]) -> None:
    failing = fault(Leader, "turn", 1)
    with rig.scheduler(), ScriptedWorker(rig):
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))

    assert failing.num_raised == 1


def test_a_leader_that_fails_for_ever_ends_the_scheduler(rig: PoolRig, fault: Callable[..., Fault]) -> None:
    failing = fault(Leader, "turn", float("inf"))
    with rig.scheduler() as scheduler:
        eventually(lambda: not scheduler.is_running, 30.0, "the scheduler's end")
        assert scheduler.served is False

    assert failing.num_raised == 4
    failing.left = 0
    with rig.scheduler():
        rig.wait_for(JobState.QUEUED, *rig.submit())


@pytest.mark.parametrize(("owner", "name"), [(Housekeeping, "fold_usage"), (WorkerEvents, "_take")])
def test_a_chore_or_an_entry_that_fails_keeps_nothing_else_from_its_turn(
    rig: PoolRig, fault: Callable[..., Fault], owner: type[Any], name: str
) -> None:
    failing = fault(owner, name, 1)
    recoveries = fault(Leader, "recover", 0)
    with rig.scheduler() as scheduler, ScriptedWorker(rig):
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))
        eventually(lambda: failing.num_raised == 1, 20.0, "the failure")

        rig.wait_for(JobState.SUCCEEDED, *rig.submit(3))
        assert scheduler.is_running
    assert recoveries.num_calls == 1, "nothing had to be read anew"


def test_a_message_to_the_leader_that_fails_leaves_the_others_answered(
    rig: PoolRig, fault: Callable[..., Fault]
) -> None:
    jobs = [envelope.job_id for envelope in (rig.envelope(), rig.envelope())]
    failing = fault(Control, "_answer", 2)  # the block, and then the first message of it
    requests = [rig.ask("lookup", job_id) for job_id in jobs]
    with rig.scheduler():
        rig.reply(request_id=requests[1])

    assert failing.num_raised == 2

"""A real worker whose device fails: its jobs go back, another engine follows; the third loss is the last."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from db.records import WorkerRow
from db.repositories.leases import LeaseRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.states import JobState
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.worker_process import WorkerProcess, packages_in
from tests.polling import eventually

PROGRAM = Path(__file__).with_name("lost_device_worker.py")
START_S = 120.0
StartWorker = Callable[..., WorkerProcess]


class LosingWorker:
    """A worker process and the file that makes its device fail."""

    def __init__(self, worker: WorkerProcess, folder: Path) -> None:
        self.worker = worker
        self._order = folder / "order"
        worker.command = [sys.executable, str(PROGRAM), str(self._order)]

    def fail(self, where: str) -> None:
        """Have the device fail from now on."""
        partial = self._order.with_name("order.partial")
        partial.write_text(f"{where} lost")
        partial.rename(self._order)

    def mend(self) -> None:
        """Have the device work again."""
        self._order.unlink()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Read the lines of one event."""
        lines = [line for line in self.worker.log_lines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def unhealthy(self, leader: ScriptedLeader) -> WorkerRow:
        """Wait until it is registered as unhealthy; returns how."""
        (said,) = eventually(lambda: self.logged("worker.unhealthy"), START_S, "the last loss")
        return eventually(
            lambda: next(
                (row for row in listed(leader) if row.incarnation.startswith(said["incarnation"])), None
            ),
            START_S,
            "its registration",
        )


@pytest.fixture
def losing(start_worker: StartWorker, tmp_path: Path) -> LosingWorker:
    """A worker that was not started yet."""
    return LosingWorker(start_worker(), tmp_path)


def listed(leader: ScriptedLeader) -> list[WorkerRow]:
    return leader.database.run(lambda c: WorkerRepository(c).listed())


def state_of(leader: ScriptedLeader, incarnation: str) -> str:
    row = leader.database.run(lambda c: WorkerRepository(c).get(incarnation))
    return "" if row is None else row.state


def lose(leader: ScriptedLeader, losing: LosingWorker, incarnation: str) -> None:
    """Have the device fail under a running job, and see the job go back without a strike."""
    (endless,) = leader.dispatch(incarnation, [ENDLESS])
    leader.await_running(incarnation, endless)
    losing.fail("forward")
    eventually(lambda: state_of(leader, incarnation) == "gone", START_S, "the incarnation's end")
    lost = leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))
    assert [pair.job_id for pair in lost.requeued] == [endless]
    (row,) = leader.sql("SELECT state, strikes, suspect_group FROM jobs WHERE job_id = :id", id=endless)
    assert tuple(row) == ("queued", 0, None)


def test_the_third_loss_of_a_device_within_ten_minutes_leaves_the_worker_unhealthy(
    leader: ScriptedLeader, losing: LosingWorker
) -> None:
    with losing.worker as worker:
        for _ in range(2):
            incarnation = worker.incarnation(leader)
            lose(leader, losing, incarnation)
            losing.mend()
        successor = worker.incarnation(leader)
        (question,) = questions(1)
        (result,) = leader.ended(leader.dispatch(successor, [question.spec]))
        assert (result.state, result.output) == (JobState.SUCCEEDED, question.answer)
        lose(leader, losing, successor)

        ill = losing.unhealthy(leader)

        assert (ill.state, ill.incarnation != successor) == ("unhealthy", True)
        assert ill.reason is not None
        assert "failed 3 times within 10 minutes" in ill.reason
        assert "CUDA error: an illegal memory access was encountered" in ill.reason
        assert ill.device.device == "cpu"  # as the last engine had told
        assert leader.lease(ill.incarnation, leader.admit([question.spec])) == []
        assert not worker.ready_file.exists()
        assert "torch" not in packages_in(worker.process.pid)
        assert [entry["again_in_s"] for entry in losing.logged("worker.device_lost")] == [0.1, 0.2]
        assert worker.terminate() == 0
    assert state_of(leader, ill.incarnation) == "gone"


def test_a_device_that_fails_while_engines_start_is_given_up_as_well(
    leader: ScriptedLeader, losing: LosingWorker
) -> None:
    losing.fail("start")
    with losing.worker as worker:
        ill = losing.unhealthy(leader)
        entered_until = expires_at(leader, ill)

        assert ill.reason is not None
        assert "CUDA error: an illegal memory access was encountered" in ill.reason
        assert len(losing.logged("engine.not_started")) == 3
        eventually(lambda: expires_at(leader, ill) > entered_until, START_S, "a renewal")
        assert worker.terminate() == 0


def expires_at(leader: ScriptedLeader, row: WorkerRow) -> datetime:
    (lease,) = leader.sql("SELECT expires_at FROM worker_leases WHERE incarnation = :i", i=row.incarnation)
    until: datetime = lease.expires_at
    return until

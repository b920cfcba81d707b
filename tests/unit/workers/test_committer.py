"""Group commit, against a scripted ledger."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from db.errors import DatabaseUnavailable
from db.records import EndedAttempt, FinishedJob
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from tests.polling import eventually
from tests.unit.workers.batch_jobs import batch_job
from workers.attempts import ActiveAttempt, AttemptTable
from workers.commit_queue import GATHER_S, CommitQueue
from workers.committer import Committer
from workers.ledger_health import LedgerHealth
from workers.outcomes import Outcome
from workers.spill import Spill

Refusal = Callable[[Sequence[EndedAttempt]], Exception | None]


class ScriptedLedger:
    """Records groups; refuses as it is told, or waits at a closed gate."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, list[EndedAttempt]]] = []
        self.refuses: Refusal = lambda _group: None
        self.moves: Callable[[EndedAttempt], bool] = lambda _one: True
        self.tries: list[int] = []
        self.written_before: list[EndedAttempt] = []
        self.gate = threading.Event()
        self.gate.set()

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        self.tries.append(seq)
        self.gate.wait(10)
        if (refusal := self.refuses(ended)) is not None:
            raise refusal
        self.groups.append((seq, list(ended)))
        return [_finished(one) for one in ended if self.moves(one)]

    def read_back(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        return [_finished(one) for one in ended if one in self.written_before]


class CommitterRig:
    """A committer with its neighbours."""

    def __init__(self, folder: Path) -> None:
        self.ledger = ScriptedLedger()
        self.announced: list[FinishedJob] = []
        self.failures: list[AdapterFailure] = []
        self.settled: list[str] = []
        self.broken: list[str] = []
        self.attempts = AttemptTable(self.settled.append)
        self.health = LedgerHealth()
        self.spilled_to = folder / "spill"
        self.committer = Committer(
            self.ledger,
            self.attempts,
            self._announce,
            health=self.health,
            spill=Spill(self.spilled_to, "w1"),
            max_uncommitted=3,
            on_broken=self.broken.append,
            suspect_after_s=0.05,
        )

    def _announce(self, finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        self.announced += finished
        self.failures += failures

    def put(self, number: int = 1) -> list[ActiveAttempt]:
        """Hand in so many ends."""
        taken = self.attempts.take("task", [batch_job() for _ in range(number)], now=0.0)
        for held in taken:
            self.committer.put(Outcome(EndedAttempt(*held.key, JobState.SUCCEEDED, output="x")))
        return taken


def _database_error(sqlstate: str) -> DBAPIError:
    return DBAPIError("INSERT", {}, psycopg.errors.lookup(sqlstate)("no"))


def _finished(one: EndedAttempt) -> FinishedJob:
    return FinishedJob(
        one.job_id,
        one.attempt,
        one.state,
        JobResult(job_id=one.job_id, state=one.state, error=one.error),
        None,
    )


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CommitterRig]:
    rig = CommitterRig(tmp_path)
    yield rig
    rig.ledger.gate.set()
    rig.committer.close()


def test_what_gathers_during_a_commit_goes_into_the_next_one(rig: CommitterRig) -> None:
    rig.ledger.gate.clear()
    rig.committer.start()
    rig.put()
    eventually(lambda: rig.ledger.tries)
    rig.put(5)

    rig.ledger.gate.set()

    assert rig.committer.flush(5)
    assert [(seq, len(group)) for seq, group in rig.ledger.groups] == [(1, 1), (2, 5)]
    assert len(rig.announced) == 6
    assert len(rig.attempts) == 0


class Waits(threading.Event):
    """A request to stop that nobody makes, and that notes how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        return False


def test_an_idle_worker_s_result_goes_out_at_once_and_the_next_gather() -> None:
    now = [100.0]
    queue, stopping = CommitQueue(lambda: now[0]), Waits()
    one, other = (Outcome(EndedAttempt(batch_job().job_id, 1, JobState.SUCCEEDED)) for _ in range(2))

    for wait_s in (0.0, 0.004, 1.0):
        now[0] += wait_s
        queue.put(one, other)
        group = queue.next_group(stopping)
        assert group is not None
        assert group.outcomes == [one, other]
        queue.let_go()

    assert stopping.waited == pytest.approx([0.0, GATHER_S - 0.004, 0.0])


def test_only_rows_that_the_ledger_moved_are_announced_but_all_are_settled(rig: CommitterRig) -> None:
    rig.ledger.moves = lambda one: one.job_id == mine.key.job_id
    mine, fenced = rig.put(2)

    rig.committer.start()

    assert rig.committer.flush(5)
    assert [job.job_id for job in rig.announced] == [mine.key.job_id]
    assert rig.attempts.get(fenced.key) is None


def test_an_outage_keeps_every_result_and_repeats_under_the_same_number(rig: CommitterRig) -> None:
    rig.ledger.refuses = lambda _group: DatabaseUnavailable("gone") if len(rig.ledger.tries) < 3 else None
    rig.put(2)

    rig.committer.start()

    assert rig.committer.flush(10)
    assert rig.ledger.tries == [1, 1, 1]
    assert len(rig.announced) == 2


def test_nothing_is_announced_before_it_is_committed(rig: CommitterRig) -> None:
    rig.ledger.gate.clear()
    rig.committer.start()
    rig.put()
    eventually(lambda: rig.ledger.tries)

    assert rig.announced == []
    assert not rig.committer.flush(0.01)
    rig.ledger.gate.set()
    assert rig.committer.flush(5)
    assert len(rig.announced) == 1


def test_admission_closes_while_too_much_is_uncommitted(rig: CommitterRig) -> None:
    rig.put(2)
    assert rig.committer.has_room

    rig.put()

    assert not rig.committer.has_room
    rig.committer.start()
    assert rig.committer.flush(5)
    assert rig.committer.has_room


def test_a_row_that_the_ledger_refuses_fails_alone(rig: CommitterRig) -> None:
    def refuses(group: Sequence[EndedAttempt]) -> Exception | None:
        return (
            ValueError("bad row")
            if any(one.job_id == bad.key.job_id and one.output for one in group)
            else None
        )

    rig.ledger.refuses = refuses
    good, bad, other = rig.put(3)

    rig.committer.start()

    assert rig.committer.flush(5)
    states = {job.job_id: job.state for job in rig.announced}
    assert states == {
        good.key.job_id: JobState.SUCCEEDED,
        bad.key.job_id: JobState.FAILED,
        other.key.job_id: JobState.SUCCEEDED,
    }
    numbers = [seq for seq, _ in rig.ledger.groups]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("sqlstate", ["57014", "25006", "40001", "26000", "0A000", "55P03", "XX000"])
def test_a_moody_server_makes_no_result_wrong(rig: CommitterRig, sqlstate: str) -> None:
    rig.ledger.refuses = lambda _group: _database_error(sqlstate) if len(rig.ledger.tries) < 3 else None
    rig.put(2)

    rig.committer.start()

    assert rig.committer.flush(10)
    assert rig.ledger.tries == [1, 1, 1]
    assert [job.state for job in rig.announced] == [JobState.SUCCEEDED] * 2


def test_a_group_that_is_refused_while_no_other_statement_succeeds_stays_whole(rig: CommitterRig) -> None:
    rig.ledger.refuses = lambda _group: _database_error("55P03") if len(rig.ledger.tries) < 4 else None
    rig.put(3)

    rig.committer.start()

    assert rig.committer.flush(10)
    assert [len(group) for _, group in rig.ledger.groups] == [3]
    assert not rig.spilled_to.exists()


def test_what_is_refused_alone_for_no_known_reason_is_spilled_and_holds_up_no_other(
    rig: CommitterRig,
) -> None:
    refuses = [True]

    def refuse(group: Sequence[EndedAttempt]) -> Exception | None:
        rig.health.renewed()
        is_bad = refuses and any(one.job_id == bad.key.job_id for one in group)
        return _database_error("XX000") if is_bad else None

    rig.ledger.refuses = refuse
    good, bad, other = rig.put(3)
    rig.committer.start()
    (path,) = eventually(lambda: list(rig.spilled_to.glob("*.json")))
    eventually(lambda: len(rig.announced) == 2)

    assert {job.job_id for job in rig.announced} == {good.key.job_id, other.key.job_id}
    assert rig.attempts.get(bad.key) is not None, "its job stays in hand, and so leased"
    record: dict[str, Any] = json.loads(path.read_text())
    assert (record["job_id"], record["output"], record["state"]) == (str(bad.key.job_id), "x", "succeeded")
    assert "XX000" in record["refused_with"]
    assert path.stat().st_mode & 0o077 == 0

    refuses.clear()
    eventually(lambda: len(rig.announced) == 3)

    assert {job.state for job in rig.announced} == {JobState.SUCCEEDED}
    eventually(lambda: rig.attempts.get(bad.key) is None)
    eventually(lambda: not list(rig.spilled_to.iterdir()))


def test_suspects_of_unknown_fate_are_repeated_under_their_number(rig: CommitterRig) -> None:
    outages = [DatabaseUnavailable("gone")]

    def refuse(group: Sequence[EndedAttempt]) -> Exception | None:
        if len(group) == 2:
            rig.health.renewed()
            return _database_error("XX000")
        rig.health._renewed_at = float("-inf")
        return outages.pop() if outages else None

    rig.ledger.refuses = refuse
    rig.put(2)
    rig.committer.start()

    assert rig.committer.flush(10)
    assert [seq for seq in rig.ledger.tries if seq > 1] == [2, 2, 3]
    assert len(rig.announced) == 2


def test_a_row_that_is_there_already_is_read_back(rig: CommitterRig) -> None:
    mine, other = rig.put(2)
    mine_ended = EndedAttempt(*mine.key, JobState.SUCCEEDED, output="x")
    rig.ledger.written_before = [mine_ended]
    rig.ledger.refuses = lambda group: _database_error("23505") if mine_ended in group else None

    rig.committer.start()

    assert rig.committer.flush(5)
    assert {job.job_id: job.state for job in rig.announced} == {
        mine.key.job_id: JobState.SUCCEEDED,
        other.key.job_id: JobState.SUCCEEDED,
    }


def test_a_schema_of_another_release_stops_new_work_until_it_fits(rig: CommitterRig) -> None:
    fits = threading.Event()
    rig.ledger.refuses = lambda _group: None if fits.is_set() else _database_error("42703")
    rig.put()

    rig.committer.start()
    eventually(lambda: not rig.health.takes_work)

    assert not rig.committer.has_room
    fits.set()
    assert rig.committer.flush(10)
    assert rig.committer.has_room
    assert [job.state for job in rig.announced] == [JobState.SUCCEEDED]


def test_a_fault_of_our_own_ends_neither_the_thread_nor_a_result(rig: CommitterRig) -> None:
    announce, faults = rig.committer._announce, [RuntimeError("a bug")]

    def fail_once(finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        if faults:
            raise faults.pop()
        announce(finished, failures)

    rig.committer._announce = fail_once
    first = rig.put()
    rig.committer.start()
    eventually(lambda: not faults)
    second = rig.put()

    assert rig.committer.flush(10)
    assert rig.ledger.tries == [1, 2], "what the ledger has taken is not written again"
    assert [job.job_id for job in rig.announced] == [held.key.job_id for held in first + second]
    assert rig.broken == []


def test_a_group_in_flight_is_finished_first_and_under_its_own_number(
    rig: CommitterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = threading.Event()

    def failed(part: str, error: Exception) -> None:
        if not raised.is_set():
            rig.put(2)
            raised.set()
            raise RuntimeError("a bug")

    monkeypatch.setattr(rig.health, "failed", failed)
    rig.ledger.refuses = lambda _group: DatabaseUnavailable("gone") if len(rig.ledger.tries) < 3 else None
    rig.put()
    rig.committer.start()
    eventually(raised.is_set)

    assert rig.committer.flush(10)
    assert rig.ledger.tries == [1, 1, 1, 2]
    assert [(seq, len(group)) for seq, group in rig.ledger.groups] == [(1, 1), (2, 2)]


def test_a_committer_that_fails_for_ever_says_so_and_keeps_nobody_waiting(rig: CommitterRig) -> None:
    def fail(finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        raise RuntimeError("a bug")

    rig.committer._announce = fail
    rig.put()
    rig.committer.start()

    assert not rig.committer.flush(600)
    assert rig.broken == ["committer"]
    assert rig.ledger.tries == [1]

"""Group commit, against a scripted ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from db.errors import DatabaseUnavailable
from db.records import EndedAttempt, FinishedJob
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from tests.polling import eventually
from tests.unit.workers.batch_jobs import batch_job
from workers.committer import Committer
from workers.holding import HeldAttempt, HoldingTable
from workers.outcomes import Outcome

Refusal = Callable[[Sequence[EndedAttempt]], Exception | None]


class ScriptedLedger:
    """Records groups; refuses as it is told, or waits at a closed gate."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, list[EndedAttempt]]] = []
        self.refuses: Refusal = lambda _group: None
        self.moves: Callable[[EndedAttempt], bool] = lambda _one: True
        self.tries: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        self.tries.append(seq)
        self.gate.wait(10)
        if (refusal := self.refuses(ended)) is not None:
            raise refusal
        self.groups.append((seq, list(ended)))
        return [_finished(one) for one in ended if self.moves(one)]


class Yard:
    """A committer with its neighbours."""

    def __init__(self) -> None:
        self.ledger = ScriptedLedger()
        self.announced: list[FinishedJob] = []
        self.failures: list[AdapterFailure] = []
        self.settled: list[str] = []
        self.holding = HoldingTable(self.settled.append)
        self.committer = Committer(self.ledger.finish, self.holding, self._announce, max_uncommitted=3)

    def _announce(self, finished: Sequence[FinishedJob], failures: Sequence[AdapterFailure]) -> None:
        self.announced += finished
        self.failures += failures

    def put(self, number: int = 1) -> list[HeldAttempt]:
        """Hand in so many ends."""
        taken = self.holding.take("task", [batch_job() for _ in range(number)], now=0.0)
        for held in taken:
            self.committer.put(Outcome(EndedAttempt(*held.key, JobState.SUCCEEDED, output="x")))
        return taken


def _finished(one: EndedAttempt) -> FinishedJob:
    return FinishedJob(
        one.job_id,
        one.attempt,
        one.state,
        JobResult(job_id=one.job_id, state=one.state, error=one.error),
        None,
    )


@pytest.fixture
def yard() -> Iterator[Yard]:
    yard = Yard()
    yield yard
    yard.ledger.gate.set()
    yard.committer.close()


def test_what_gathers_during_a_commit_goes_into_the_next_one(yard: Yard) -> None:
    yard.ledger.gate.clear()
    yard.committer.start()
    yard.put()
    eventually(lambda: yard.ledger.tries)
    yard.put(5)

    yard.ledger.gate.set()

    assert yard.committer.flush(5)
    assert [(seq, len(group)) for seq, group in yard.ledger.groups] == [(1, 1), (2, 5)]
    assert len(yard.announced) == 6
    assert len(yard.holding) == 0


def test_only_rows_that_the_ledger_moved_are_announced_but_all_are_settled(yard: Yard) -> None:
    yard.ledger.moves = lambda one: one.job_id == mine.key.job_id
    mine, fenced = yard.put(2)

    yard.committer.start()

    assert yard.committer.flush(5)
    assert [job.job_id for job in yard.announced] == [mine.key.job_id]
    assert yard.holding.get(fenced.key) is None


def test_an_outage_keeps_every_result_and_repeats_under_the_same_number(yard: Yard) -> None:
    yard.ledger.refuses = lambda _group: DatabaseUnavailable("gone") if len(yard.ledger.tries) < 3 else None
    yard.put(2)

    yard.committer.start()

    assert yard.committer.flush(10)
    assert yard.ledger.tries == [1, 1, 1]
    assert len(yard.announced) == 2


def test_nothing_is_announced_before_it_is_committed(yard: Yard) -> None:
    yard.ledger.gate.clear()
    yard.committer.start()
    yard.put()
    eventually(lambda: yard.ledger.tries)

    assert yard.announced == []
    assert not yard.committer.flush(0.01)
    yard.ledger.gate.set()
    assert yard.committer.flush(5)
    assert len(yard.announced) == 1


def test_admission_closes_while_too_much_is_uncommitted(yard: Yard) -> None:
    yard.put(2)
    assert yard.committer.has_room

    yard.put()

    assert not yard.committer.has_room
    yard.committer.start()
    assert yard.committer.flush(5)
    assert yard.committer.has_room


def test_a_row_that_the_ledger_refuses_fails_alone(yard: Yard) -> None:
    def refuses(group: Sequence[EndedAttempt]) -> Exception | None:
        return (
            ValueError("bad row")
            if any(one.job_id == bad.key.job_id and one.output for one in group)
            else None
        )

    yard.ledger.refuses = refuses
    good, bad, other = yard.put(3)

    yard.committer.start()

    assert yard.committer.flush(5)
    states = {job.job_id: job.state for job in yard.announced}
    assert states == {
        good.key.job_id: JobState.SUCCEEDED,
        bad.key.job_id: JobState.FAILED,
        other.key.job_id: JobState.SUCCEEDED,
    }
    numbers = [seq for seq, _ in yard.ledger.groups]
    assert numbers == sorted(set(numbers))

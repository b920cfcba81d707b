"""Writes ends to the ledger in groups; it never drops one, and what is refused holds up no other."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from db.database import Database
from db.errors import DatabaseUnavailable
from db.judge import Fault, explain, fault_of, reason_of, sqlstate_of
from db.records import EndedAttempt, FinishedJob, JobAttempt
from db.repositories.finish import FinishRepository
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.attempts import AttemptTable
from workers.ledger_health import LedgerHealth
from workers.outcomes import Outcome
from workers.spill import Spill

GATHER_S = 0.01
MAX_GROUP = 256
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
SUSPECT_AFTER_S = 60.0
RECENTLY_S = 10.0
"""The ledger takes writes if it has taken one within so long."""

REFUSED = "result_refused"

logger = structlog.get_logger(__name__)
Announce = Callable[[Sequence[FinishedJob], Sequence[AdapterFailure]], None]


class ResultLedger(Protocol):
    """Where results go; raises whatever Postgres and its driver raise."""

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Write the group of a number; returns what it moved."""
        ...

    def read_back(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Read those that are written already."""
        ...


class PostgresLedger:
    """Writes as one incarnation."""

    def __init__(self, database: Database, incarnation: str) -> None:
        self._database = database
        self._incarnation = incarnation

    def finish(self, seq: int, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Write the group of a number; returns what it moved."""
        return self._database.run(lambda c: FinishRepository(c).finish(self._incarnation, seq, ended))

    def read_back(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob]:
        """Read those that are written already."""
        return self._database.run(lambda c: FinishRepository(c).read_back(self._incarnation, ended))


@dataclass(slots=True)
class Group:
    """Mutable: ends for one transaction, under the number that the ledger knows it by, and how far it is.

    Suspects were refused before for no known reason, and get one try.
    """

    seq: int
    outcomes: Sequence[Outcome]
    are_suspects: bool
    began_at: float
    tried_at: float = 0.0
    retry_s: float = FIRST_RETRY_S
    finished: list[FinishedJob] | None = None
    """What the ledger moved, once it has taken the group."""


class Committer:
    """One thread: the next group gathers while one is being committed, and for at least 10 ms.

    What the ledger refuses is judged by `db.judge`: a bad row is found by halving the group, and fails alone.
    A group that is refused for `suspect_after_s` for any other reason, although the lease is renewed, is
    halved as well, behind all others; what is refused alone is spilled, and tried again now and then.

    A step is one try of one group, which stays in flight until its jobs are settled and announced: a step
    that raises leaves it there, under its number, for the next one to finish before anything else.
    """

    def __init__(
        self,
        ledger: ResultLedger,
        attempts: AttemptTable,
        announce: Announce,
        *,
        health: LedgerHealth,
        spill: Spill,
        max_uncommitted: int,
        on_broken: OnBroken,
        suspect_after_s: float = SUSPECT_AFTER_S,
    ) -> None:
        self._ledger = ledger
        self._attempts = attempts
        self._announce = announce
        self._health = health
        self._spill = spill
        self._max_uncommitted = max_uncommitted
        self._on_broken = on_broken
        self._suspect_after_s = suspect_after_s
        self._wake = threading.Condition()
        self._in_flight: Group | None = None
        self._parts: deque[Sequence[Outcome]] = deque()
        """Of a group with a bad row; they go before all others."""
        self._waiting: deque[Outcome] = deque()
        self._suspects: deque[Sequence[Outcome]] = deque()
        self._spilled: dict[JobAttempt, Outcome] = {}
        self._spilled_due_at = 0.0
        self._last_were_suspects = False
        self._is_broken = False
        self._seq = itertools.count(1)
        self._thread = ServiceThread("committer", self._step, on_broken=self._give_up, wake=self._notify)

    @property
    def has_room(self) -> bool:
        """Whether more results can be kept; when not, no further request goes to the engine."""
        with self._wake:
            kept = self._num_unwritten() + len(self._spilled)
        return kept < self._max_uncommitted and self._health.takes_work

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Take one end; never blocks and never refuses."""
        with self._wake:
            self._waiting.append(outcome)
            self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is in the ledger or spilled; False when that took too long.

        A committer that has given up writes nothing more, so that nobody waits for it.
        """
        with self._wake:
            self._spilled_due_at = 0.0
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._is_broken or not self._num_unwritten(), timeout_s)
            return not self._num_unwritten()

    def close(self) -> None:
        """Stop committing; what is uncommitted stays leased and is requeued by the leader."""
        self._thread.close()

    def _num_unwritten(self) -> int:
        in_flight = 0 if self._in_flight is None else len(self._in_flight.outcomes)
        return in_flight + len(self._waiting) + sum(map(len, self._parts)) + sum(map(len, self._suspects))

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _give_up(self, thread: str) -> None:
        with self._wake:
            self._is_broken = True
            self._wake.notify_all()
        self._on_broken(thread)

    def _step(self) -> None:
        group = self._in_flight or self._next_group()
        if group is None:
            return
        if group.finished is None and (error := self._try(group)) is not None:
            self._judge(group, error)
        else:
            self._settle(group)

    def _next_group(self) -> Group | None:
        if not self._parts:
            with self._wake:
                self._wake.wait_for(self._has_work, LAST_RETRY_S if self._spilled else None)
            self._thread.stopping.wait(GATHER_S)
        with self._wake:
            if not self._thread.stopping.is_set():
                outcomes, are_suspects = self._take()
                if outcomes:
                    self._in_flight = Group(next(self._seq), outcomes, are_suspects, time.monotonic())
            return self._in_flight

    def _has_work(self) -> bool:
        return bool(self._waiting or self._suspects or self._thread.stopping.is_set())

    def _take(self) -> tuple[Sequence[Outcome], bool]:
        """Take a fresh group and one of suspects by turns; tells which it is."""
        if self._parts:
            return self._parts.popleft(), False
        if self._spilled and time.monotonic() >= self._spilled_due_at:
            self._suspects += [[outcome] for outcome in self._spilled.values()]
            self._spilled.clear()
        are_suspects = bool(self._suspects) and not (self._waiting and self._last_were_suspects)
        self._last_were_suspects = are_suspects
        if are_suspects:
            return self._suspects.popleft(), are_suspects
        return [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))], are_suspects

    def _try(self, group: Group) -> Exception | None:
        """Write a group once; returns what the ledger had against it.

        A commit of unknown fate is repeated under its own number, which the ledger then knows.
        """
        group.tried_at = time.monotonic()
        try:
            group.finished = self._ledger.finish(group.seq, [outcome.ended for outcome in group.outcomes])
        except Exception as error:  # noqa: BLE001 - whatever it is, the judge tells what to do about it
            self._health.failed("commits", error)
            return error
        self._health.served("commits")
        return None

    def _settle(self, group: Group) -> None:
        finished = group.finished or []
        for outcome in group.outcomes:
            if outcome.was_spilled:
                self._spill.forget(outcome.ended)
        self._attempts.settle(map(_key, group.outcomes))
        failures = [outcome.failure for outcome in group.outcomes if outcome.failure is not None]
        self._announce(finished, failures)
        self._let_go()
        logger.info(
            "jobs.committed",
            ended=len(group.outcomes),
            recorded=len(finished),
            commit_ms=round((time.monotonic() - group.tried_at) * 1000, 1),
        )

    def _let_go(
        self, *, parts: Sequence[Sequence[Outcome]] = (), suspects: Sequence[Sequence[Outcome]] = ()
    ) -> None:
        """End the flight of a group: what is left of it goes before all others, or is suspected."""
        with self._wake:
            self._parts.extendleft(reversed(parts))
            self._suspects += suspects
            self._in_flight = None
            self._wake.notify_all()

    def _judge(self, group: Group, error: Exception) -> None:
        """Keep a group in flight until the ledger takes it, a row is to blame, or it alone is refused."""
        fault = fault_of(error)
        if fault in (Fault.ROW, Fault.REPEAT):
            self._isolate(group, error, fault)
            return
        is_outage = isinstance(error, DatabaseUnavailable)
        event = "commit.database_unavailable" if is_outage else "commit.waits"
        logger.warning(event, kept=len(group.outcomes), fault=fault.value, error=explain(error))
        waited_s = time.monotonic() - group.began_at
        if (group.are_suspects or waited_s >= self._suspect_after_s) and self._are_alone_refused(fault):
            self._suspect(group, error)
        elif group.are_suspects and not is_outage:
            # Others have their turn; in an outage, nobody has one, and its fate may be unknown.
            self._let_go(suspects=[group.outcomes])
        self._thread.stopping.wait(group.retry_s)
        group.retry_s = min(LAST_RETRY_S, group.retry_s * 2)

    def _are_alone_refused(self, fault: Fault) -> bool:
        return fault is Fault.SERVER and self._health.has_renewed_within(RECENTLY_S)

    def _isolate(self, group: Group, error: Exception, fault: Fault) -> None:
        """Find the row to blame by halves; good ones are written on the way."""
        if len(group.outcomes) > 1:
            self._let_go(parts=_halves(group.outcomes))
            return
        (one,) = group.outcomes
        if fault is Fault.REPEAT:
            self._read_back(group, error)
            return
        logger.error("commit.refused", **_names(one), error=reason_of(error))
        if one.refused is not None:
            # Not even the refusal can be written, so it was not the result that was wrong.
            self._set_aside(dataclasses.replace(one, ended=one.refused, refused=None), error)
            return
        refused = dataclasses.replace(one, ended=_refused(one.ended, error), refused=one.ended)
        self._let_go(parts=[[refused]])

    def _read_back(self, group: Group, error: Exception) -> None:
        """Settle what is in the ledger already."""
        (one,) = group.outcomes
        try:
            finished = self._ledger.read_back([one.ended])
        except Exception as refusal:  # noqa: BLE001 - it is tried again with the row itself
            self._health.failed("commits", refusal)
            self._let_go(suspects=[group.outcomes])
            return
        if finished:
            group.finished = finished
            self._settle(group)
        else:
            self._set_aside(one, error)

    def _suspect(self, group: Group, error: Exception) -> None:
        """Have halves tried behind all others; set aside what stands alone."""
        if len(group.outcomes) == 1:
            self._set_aside(group.outcomes[0], error)
            return
        logger.error("commit.suspects", suspects=len(group.outcomes), error=reason_of(error))
        self._let_go(suspects=_halves(group.outcomes))

    def _set_aside(self, one: Outcome, error: Exception) -> None:
        """Spill one result; its job stays leased, so that nobody computes it again meanwhile."""
        self._spill.keep(one.ended, error)
        with self._wake:
            self._spilled[_key(one)] = dataclasses.replace(one, was_spilled=True)
            self._spilled_due_at = time.monotonic() + self._suspect_after_s
            self._let_go()


def _key(outcome: Outcome) -> JobAttempt:
    return JobAttempt(outcome.ended.job_id, outcome.ended.attempt)


def _names(outcome: Outcome) -> dict[str, object]:
    return {"job_id": str(outcome.ended.job_id), "attempt": outcome.ended.attempt}


def _halves(outcomes: Sequence[Outcome]) -> tuple[Sequence[Outcome], Sequence[Outcome]]:
    middle = len(outcomes) // 2
    return outcomes[:middle], outcomes[middle:]


def _refused(one: EndedAttempt, error: Exception) -> EndedAttempt:
    name = f"{type(error).__name__} {sqlstate_of(error) or ''}".strip()
    return EndedAttempt(
        job_id=one.job_id,
        attempt=one.attempt,
        state=JobState.FAILED,
        device_ms=one.device_ms,
        error=JobError(code=REFUSED, message=f"the ledger refused a value of the result: {name}"),
        revision=one.revision,
    )

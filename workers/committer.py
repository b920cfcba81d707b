"""Writes ends to the ledger in groups; it never drops one, and what is refused holds up no other."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog

from db.database import Database
from db.errors import DatabaseUnavailable
from db.judge import Fault, explain, fault_of, reason_of, sqlstate_of
from db.records import EndedAttempt, FinishedJob, JobAttempt
from db.repositories.finish import FinishRepository
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
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


class Group(NamedTuple):
    """Ends for one transaction; suspects were refused before for no known reason, and get one try."""

    outcomes: Sequence[Outcome]
    are_suspects: bool = False


class Committer:
    """One thread: the next group gathers while one is being committed, and for at least 10 ms.

    What the ledger refuses is judged by `db.judge`: a bad row is found by halving the group, and fails alone.
    A group that is refused for `suspect_after_s` for any other reason, although the lease is renewed, is
    halved as well, behind all others; what is refused alone is spilled, and tried again now and then.
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
        suspect_after_s: float = SUSPECT_AFTER_S,
    ) -> None:
        self._ledger = ledger
        self._attempts = attempts
        self._announce = announce
        self._health = health
        self._spill = spill
        self._max_uncommitted = max_uncommitted
        self._suspect_after_s = suspect_after_s
        self._wake = threading.Condition()
        self._waiting: deque[Outcome] = deque()
        self._suspects: deque[Sequence[Outcome]] = deque()
        self._spilled: dict[JobAttempt, Outcome] = {}
        self._spilled_due_at = 0.0
        self._in_flight = 0
        self._last_were_suspects = False
        self._seq = itertools.count(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    @property
    def has_room(self) -> bool:
        """Whether more results can be kept; when not, no further request goes to the engine."""
        with self._wake:
            suspects = sum(map(len, self._suspects))
            kept = len(self._waiting) + self._in_flight + suspects + len(self._spilled)
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
        """Wait until everything put so far is in the ledger or spilled; False when that took too long."""
        with self._wake:
            self._spilled_due_at = 0.0
            self._wake.notify_all()
            return self._wake.wait_for(
                lambda: not self._waiting and not self._in_flight and not self._suspects, timeout_s
            )

    def close(self) -> None:
        """Stop committing; what is uncommitted stays leased and is requeued by the leader."""
        self._closed.set()
        with self._wake:
            self._wake.notify_all()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            try:
                self._commit(group)
            except Exception:
                logger.exception("committer.failed", kept=len(group.outcomes))
                self._try_later([outcome for outcome in group.outcomes if self._is_unsettled(_key(outcome))])
                self._closed.wait(LAST_RETRY_S)
            with self._wake:
                self._in_flight = 0
                self._wake.notify_all()

    def _next_group(self) -> Group | None:
        with self._wake:
            self._wake.wait_for(self._has_work, LAST_RETRY_S if self._spilled else None)
        self._closed.wait(GATHER_S)
        with self._wake:
            if self._closed.is_set():
                return None
            group = self._take()
            self._in_flight = len(group.outcomes)
            return group

    def _has_work(self) -> bool:
        return bool(self._waiting or self._suspects or self._closed.is_set())

    def _take(self) -> Group:
        """Take a fresh group and one of suspects by turns."""
        if self._spilled and time.monotonic() >= self._spilled_due_at:
            self._suspects += [[outcome] for outcome in self._spilled.values()]
            self._spilled.clear()
        are_suspects = bool(self._suspects) and not (self._waiting and self._last_were_suspects)
        self._last_were_suspects = are_suspects
        if are_suspects:
            return Group(self._suspects.popleft(), are_suspects)
        return Group([self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))])

    def _commit(self, group: Group) -> None:
        if group.are_suspects:
            self._write_suspects(group.outcomes)
        elif group.outcomes:
            self._write(group.outcomes)

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        """Write until the ledger takes the group, a row is to blame, or nothing else is refused for long."""
        began_at, retry_s = time.monotonic(), FIRST_RETRY_S
        # A commit of unknown fate is repeated under its own number, which the ledger then knows.
        seq = next(self._seq)
        while not self._closed.is_set():
            error = self._try(seq, outcomes)
            if error is None:
                return
            fault = fault_of(error)
            if fault in (Fault.ROW, Fault.REPEAT):
                self._isolate(outcomes, error, fault)
                return
            is_outage = isinstance(error, DatabaseUnavailable)
            event = "commit.database_unavailable" if is_outage else "commit.waits"
            logger.warning(event, kept=len(outcomes), fault=fault.value, error=explain(error))
            if time.monotonic() - began_at >= self._suspect_after_s and self._are_alone_refused(fault):
                self._suspect(outcomes, error)
                return
            self._closed.wait(retry_s)
            retry_s = min(LAST_RETRY_S, retry_s * 2)

    def _write_suspects(self, outcomes: Sequence[Outcome]) -> None:
        """Write rows that are suspected, in one try, so that others have their turn."""
        error = self._try(next(self._seq), outcomes)
        if error is None:
            return
        fault = fault_of(error)
        if fault in (Fault.ROW, Fault.REPEAT):
            self._isolate(outcomes, error, fault)
        elif self._are_alone_refused(fault):
            self._suspect(outcomes, error)
        else:
            self._try_later(outcomes)
        self._closed.wait(FIRST_RETRY_S)

    def _try(self, seq: int, outcomes: Sequence[Outcome]) -> Exception | None:
        """Write one group once; returns what the ledger had against it."""
        began_at = time.monotonic()
        try:
            finished = self._ledger.finish(seq, [outcome.ended for outcome in outcomes])
        except Exception as error:  # noqa: BLE001 - whatever it is, the judge tells what to do about it
            self._health.failed("commits", error)
            return error
        self._health.served("commits")
        self._settle(outcomes, finished, began_at)
        return None

    def _settle(self, outcomes: Sequence[Outcome], finished: list[FinishedJob], began_at: float) -> None:
        for outcome in outcomes:
            if outcome.was_spilled:
                self._spill.forget(outcome.ended)
        self._attempts.settle(map(_key, outcomes))
        self._announce(finished, [outcome.failure for outcome in outcomes if outcome.failure is not None])
        logger.info(
            "jobs.committed",
            ended=len(outcomes),
            recorded=len(finished),
            commit_ms=round((time.monotonic() - began_at) * 1000, 1),
        )

    def _are_alone_refused(self, fault: Fault) -> bool:
        return fault is Fault.SERVER and self._health.has_renewed_within(RECENTLY_S)

    def _isolate(self, outcomes: Sequence[Outcome], error: Exception, fault: Fault) -> None:
        """Find the row to blame by halves; good ones are written on the way."""
        if len(outcomes) > 1:
            for half in _halves(outcomes):
                self._write(half)
            return
        (one,) = outcomes
        if fault is Fault.REPEAT:
            self._read_back(one, error)
            return
        logger.error("commit.refused", **_names(one), error=reason_of(error))
        if one.refused is not None:
            # Not even the refusal can be written, so it was not the result that was wrong.
            self._set_aside(dataclasses.replace(one, ended=one.refused, refused=None), error)
            return
        self._write([dataclasses.replace(one, ended=_refused(one.ended, error), refused=one.ended)])

    def _read_back(self, one: Outcome, error: Exception) -> None:
        """Settle what is in the ledger already."""
        began_at = time.monotonic()
        try:
            finished = self._ledger.read_back([one.ended])
        except Exception as refusal:  # noqa: BLE001 - it is tried again with the row itself
            self._health.failed("commits", refusal)
            self._try_later([one])
            return
        if finished:
            self._settle([one], finished, began_at)
        else:
            self._set_aside(one, error)

    def _suspect(self, outcomes: Sequence[Outcome], error: Exception) -> None:
        """Have halves tried behind all others; set aside what stands alone."""
        if len(outcomes) == 1:
            self._set_aside(outcomes[0], error)
            return
        logger.error("commit.suspects", suspects=len(outcomes), error=reason_of(error))
        for half in _halves(outcomes):
            self._try_later(half)

    def _set_aside(self, one: Outcome, error: Exception) -> None:
        """Spill one result; its job stays leased, so that nobody computes it again meanwhile."""
        self._spill.keep(one.ended, error)
        with self._wake:
            self._spilled[_key(one)] = dataclasses.replace(one, was_spilled=True)
            self._spilled_due_at = time.monotonic() + self._suspect_after_s

    def _is_unsettled(self, key: JobAttempt) -> bool:
        return key not in self._spilled and self._attempts.get(key) is not None

    def _try_later(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            with self._wake:
                self._suspects.append(outcomes)


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

"""Writes ends to the ledger in groups; through an outage it keeps them, and it never drops one."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from db.database import Database
from db.errors import DatabaseUnavailable
from db.records import EndedAttempt, FinishedJob, JobAttempt
from db.repositories.finish import FinishRepository
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from workers.holding import HoldingTable
from workers.outcomes import Outcome

GATHER_S = 0.01
MAX_GROUP = 256
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0

logger = structlog.get_logger(__name__)
Announce = Callable[[Sequence[FinishedJob], Sequence[AdapterFailure]], None]
Finish = Callable[[int, Sequence[EndedAttempt]], list[FinishedJob]]
"""Writes the group of a number to the ledger; answers what it moved, raises DatabaseUnavailable."""


def finish_in(database: Database, incarnation: str) -> Finish:
    """Write as one incarnation."""
    return lambda seq, ended: database.run(
        lambda connection: FinishRepository(connection).finish(incarnation, seq, ended)
    )


class Committer:
    """One thread: the next group gathers while one is being committed, and for at least 10 ms."""

    def __init__(
        self,
        finish: Finish,
        holding: HoldingTable,
        announce: Announce,
        *,
        max_uncommitted: int,
    ) -> None:
        self._finish = finish
        self._holding = holding
        self._announce = announce
        self._max_uncommitted = max_uncommitted
        self._wake = threading.Condition()
        self._waiting: deque[Outcome] = deque()
        self._in_flight = 0
        self._seq = itertools.count(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    @property
    def has_room(self) -> bool:
        """Whether more results can be kept; when not, no further request goes to the engine."""
        return len(self._waiting) + self._in_flight < self._max_uncommitted

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Take one end; never blocks and never refuses."""
        with self._wake:
            self._waiting.append(outcome)
            self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is in the ledger; False when that took too long."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._waiting and not self._in_flight, timeout_s)

    def close(self) -> None:
        """Stop committing; what is uncommitted stays leased and is requeued by the leader."""
        self._closed.set()
        with self._wake:
            self._wake.notify_all()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while group := self._next_group():
            self._commit(group)
            with self._wake:
                self._in_flight = 0
                self._wake.notify_all()

    def _next_group(self) -> list[Outcome]:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._closed.is_set())
        self._closed.wait(GATHER_S)
        with self._wake:
            if self._closed.is_set():
                return []
            group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
            self._in_flight = len(group)
            return group

    def _commit(self, group: Sequence[Outcome]) -> None:
        began_at = time.monotonic()
        finished = self._write([outcome.ended for outcome in group])
        if finished is None:
            return
        self._holding.settle(JobAttempt(o.ended.job_id, o.ended.attempt) for o in group)
        self._announce(finished, [outcome.failure for outcome in group if outcome.failure is not None])
        logger.info(
            "jobs.committed",
            ended=len(group),
            recorded=len(finished),
            commit_ms=round((time.monotonic() - began_at) * 1000, 1),
        )

    def _write(self, ended: Sequence[EndedAttempt]) -> list[FinishedJob] | None:
        """Write until the ledger answers; None when the worker is closed first."""
        retry_s = FIRST_RETRY_S
        # A commit of unknown fate is repeated under its own number, which the ledger then knows.
        seq = next(self._seq)
        while not self._closed.is_set():
            try:
                return self._finish(seq, ended)
            except DatabaseUnavailable as error:
                logger.warning("commit.database_unavailable", kept=len(ended), error=str(error))
                self._closed.wait(retry_s)
                retry_s = min(LAST_RETRY_S, retry_s * 2)
            except Exception as error:  # noqa: BLE001 - one refused row must not hold up all others for ever
                return self._write_apart(ended, error)
        return None

    def _write_apart(self, ended: Sequence[EndedAttempt], error: Exception) -> list[FinishedJob] | None:
        """Find the row that Postgres refuses by committing each alone; the culprit fails with the reason."""
        if len(ended) > 1:
            apart = [self._write([one]) for one in ended]
            return None if None in apart else [job for jobs in apart for job in jobs or ()]
        (one,) = ended
        logger.error("commit.refused", job_id=str(one.job_id), attempt=one.attempt, error=str(error))
        if one.error is not None and one.error.code == "result_refused":
            return []
        return self._write([_refused(one, error)])


def _refused(one: EndedAttempt, error: Exception) -> EndedAttempt:
    reason = JobError(code="result_refused", message=f"the ledger refused the result: {type(error).__name__}")
    return EndedAttempt(
        job_id=one.job_id,
        attempt=one.attempt,
        state=JobState.FAILED,
        device_ms=one.device_ms,
        error=reason,
        revision=one.revision,
    )

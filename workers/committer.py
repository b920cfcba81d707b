"""Writes ends to the ledger in groups; it never drops one, and what is refused holds up no other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import structlog

from db.errors import DatabaseUnavailable
from db.judge import Fault, explain, fault_of, reason_of, sqlstate_of
from db.records import EndedAttempt, FinishedJob
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.attempts import AttemptTable
from workers.commit_queue import LAST_RETRY_S, CommitQueue, Group
from workers.ledger_health import LedgerHealth
from workers.outcomes import Outcome
from workers.result_ledger import ResultLedger
from workers.spill import Spill

SUSPECT_AFTER_S = 60.0
RECENTLY_S = 10.0
"""The ledger takes writes if it has taken one within so long."""

REFUSED = "result_refused"

logger = structlog.get_logger(__name__)
Announce = Callable[[Sequence[FinishedJob], Sequence[AdapterFailure]], None]


class Committer:
    """One thread: the next group gathers while one is being committed, at least 10 ms after the last was.

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
        self._queue = CommitQueue()
        self._is_broken = False
        self._thread = ServiceThread(
            "committer", self._step, on_broken=self._give_up, wake=self._queue.notify
        )

    @property
    def has_room(self) -> bool:
        """Whether more results can be kept; when not, no further request goes to the engine."""
        return self._queue.num_kept < self._max_uncommitted and self._health.takes_work

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def put(self, *outcomes: Outcome) -> None:
        """Take ends that came together; never blocks and never refuses."""
        self._queue.put(*outcomes)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is in the ledger or spilled; False when that took too long.

        A committer that has given up writes nothing more, so that nobody waits for it.
        """
        return self._queue.await_written(timeout_s, lambda: self._is_broken)

    def close(self) -> None:
        """Stop committing; what is uncommitted stays leased and is requeued by the leader."""
        self._thread.close()

    def _give_up(self, thread: str) -> None:
        self._is_broken = True
        self._queue.notify()
        self._on_broken(thread)

    def _step(self) -> None:
        group = self._queue.next_group(self._thread.stopping)
        if group is None:
            return
        if group.finished is None and (error := self._try(group)) is not None:
            self._judge(group, error)
        else:
            self._settle(group)

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
        self._attempts.settle(outcome.key for outcome in group.outcomes)
        self._attempts.num_succeeded += sum(job.state is JobState.SUCCEEDED for job in finished)
        failures = [outcome.failure for outcome in group.outcomes if outcome.failure is not None]
        self._announce(finished, failures)
        self._queue.let_go()
        logger.info(
            "jobs.committed",
            ended=len(group.outcomes),
            recorded=len(finished),
            commit_ms=round((time.monotonic() - group.tried_at) * 1000, 1),
        )

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
            self._queue.let_go(suspects=[group.outcomes])
        self._thread.stopping.wait(group.retry_s)
        group.retry_s = min(LAST_RETRY_S, group.retry_s * 2)

    def _are_alone_refused(self, fault: Fault) -> bool:
        return fault is Fault.SERVER and self._health.has_renewed_within(RECENTLY_S)

    def _isolate(self, group: Group, error: Exception, fault: Fault) -> None:
        """Find the row to blame by halves; good ones are written on the way."""
        if len(group.outcomes) > 1:
            self._queue.let_go(parts=_halves(group.outcomes))
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
        self._queue.let_go(parts=[[refused]])

    def _read_back(self, group: Group, error: Exception) -> None:
        """Settle what is in the ledger already."""
        (one,) = group.outcomes
        try:
            finished = self._ledger.read_back([one.ended])
        except Exception as refusal:  # noqa: BLE001 - it is tried again with the row itself
            self._health.failed("commits", refusal)
            self._queue.let_go(suspects=[group.outcomes])
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
        self._queue.let_go(suspects=_halves(group.outcomes))

    def _set_aside(self, one: Outcome, error: Exception) -> None:
        """Spill one result; its job stays leased, so that nobody computes it again meanwhile."""
        self._spill.keep(one.ended, error)
        self._queue.set_aside(dataclasses.replace(one, was_spilled=True), self._suspect_after_s)


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

"""What a handle does with its job, as steps: a thread takes them one after the other, or an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import UUID

from lorayard.client.session import Session
from lorayard.client.tracked_job import TrackedJob
from lorayard.contract.errors import IdempotencyConflict, JobFailed, ResultExpired, ResultTimeout, UnknownJob
from lorayard.contract.result import JobProgress, JobResult
from lorayard.contract.states import JobState

T = TypeVar("T")

_NO_VERDICT = "may be another submission's: the ledger has not judged this one"


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for news of the job until `is_over`; the caller throws `complain()` if that takes too long.

    The monotonic `deadline`, which many jobs may share, is `timeout` seconds from now if none is given.
    """

    is_over: Callable[[], bool]
    timeout: float | None
    complaint: str
    deadline: float | None = None

    def until(self) -> float | None:
        """Tell when it is given up, on the monotonic clock; None is never."""
        if self.deadline is None and self.timeout is not None:
            return time.monotonic() + self.timeout
        return self.deadline


@dataclass(frozen=True, slots=True)
class Exchange:
    """Call this, which talks to Redis for a moment; the steps go on with what it returns."""

    call: Callable[[], Any]


Steps: TypeAlias = Generator[Wait | Exchange, Any, T]


class JobSteps:
    """One submission's view of one job; every method that has steps returns them, none waits by itself."""

    def __init__(self, session: Session, tracked: TrackedJob, submission_id: UUID | None) -> None:
        self.session = session
        self.tracked = tracked
        self._submission_id = submission_id

    @property
    def is_settled(self) -> bool:
        """True when nothing more will be heard that concerns this submission."""
        return self.tracked.is_settled(self._submission_id)

    def look(self) -> bool:
        """Send a question if one is due; tells whether the job is settled, and waits for no answer."""
        if not self.is_settled:
            self.session.listen()
            if self.session.tracker.take_due(self.tracked):
                request_id = self.session.ask("lookup", self.tracked)
                self.session.tracker.forget_question(self.tracked, request_id)
        return self.is_settled

    def result(self, timeout: float | None, *, raise_on_failure: bool) -> Steps[JobResult]:
        """Wait for the end; raises as `JobHandle.result` does."""
        yield Wait(lambda: self.is_settled, timeout, "has not ended")
        self._raise_if_void()
        result = self.tracked.result
        assert result is not None
        if raise_on_failure and result.state is not JobState.SUCCEEDED:
            raise JobFailed(result)
        return result

    def status(self) -> Steps[JobProgress]:
        """Ask for state, place and foreseen end; raises as `JobHandle.status` does."""
        if self.tracked.result is None or not self._has_verdict():
            self.session.tracker.forget_place(self.tracked)
            yield from self._ask("lookup")
        if not self._has_verdict():
            # It waits in the intake; what was heard by then is of another submission.
            return JobProgress(JobState.QUEUED)
        return self.session.tracker.progress(self.tracked)

    def cancel(self) -> Steps[JobState]:
        """Ask for the job's end; raises as `JobHandle.cancel` does."""
        yield from self.verdict(self.session.timeout_s)
        if self._submission_id in self.tracked.unheard:
            raise ResultTimeout(
                f"job {self.tracked.job_id} is not cancelled: Redis lost what the ledger said of this "
                "submission, so the job of its key may be another one's; Client.job(id).cancel() cancels it "
                "whosever it is"
            )
        if self.tracked.result is not None:
            return self.tracked.result.state
        return (yield from self._ask("cancel"))

    def admitted(self, timeout: float, deadline: float | None = None) -> Steps[None]:
        """Wait until the ledger holds the job; raises IdempotencyConflict, ResultExpired, ResultTimeout."""
        complaint = "is in Redis, but the ledger has not confirmed it"
        yield Wait(self._is_admitted, timeout, complaint, deadline)
        self._raise_if_void()

    def verdict(self, timeout: float | None, deadline: float | None = None) -> Steps[None]:
        """Wait until this submission is known to be the job; raises IdempotencyConflict if it is not."""
        yield Wait(self._has_verdict, timeout, _NO_VERDICT, deadline)
        if self._submission_id in self.tracked.conflicts:
            self._raise_if_void()

    def timed_out(self, wait: Wait) -> ResultTimeout:
        """Make the error of a wait that took too long."""
        return ResultTimeout(
            f"job {self.tracked.job_id} {wait.complaint} within {wait.timeout:g} s: {self.session.excuse()}"
        )

    def _is_admitted(self) -> bool:
        return self.is_settled or (self.tracked.state is not None and self._has_verdict())

    def _has_verdict(self) -> bool:
        """Tell whether the job of this name is known to be this submission, or to be none."""
        return self._submission_id not in self.tracked.unconfirmed or self.is_settled

    def _ask(self, kind: Literal["cancel", "lookup"]) -> Steps[JobState]:
        before = self.tracked.replies
        ask = partial(self.session.ask, kind, self.tracked, wants_place=kind == "lookup")
        request_id = yield Exchange(ask)
        try:
            yield Wait(lambda: self._has_answer(request_id), self.session.timeout_s, "got no answer")
        except ResultTimeout:
            # The answer itself may have been lost; news heard since the question will do.
            if self.tracked.replies == before or self.tracked.state is None:
                raise
        finally:
            self.session.tracker.forget_question(self.tracked, request_id)
        self._raise_if_void()
        # A job of ours that the ledger does not know yet waits in the intake.
        return self.tracked.state or JobState.QUEUED

    def _has_answer(self, request_id: UUID) -> bool:
        known = self.tracked.state is not None or self.tracked.is_submitted_here
        return self.is_settled or (known and request_id not in self.tracked.pending)

    def _raise_if_void(self) -> None:
        """Raise if there is no job behind this submission."""
        job_id = self.tracked.job_id
        conflict = self.tracked.conflicts.get(self._submission_id) if self._submission_id else None
        if conflict is not None:
            raise IdempotencyConflict(f"job {job_id}: {conflict.message}")
        if self.tracked.expired is not None and self.tracked.result is None:
            raise ResultExpired(self.tracked.expired.message)
        if self.tracked.lost and self.tracked.is_submitted_here:
            raise UnknownJob(f"job {job_id} was lost by Redis before it was admitted: submit it again")
        if self.tracked.lost:
            raise UnknownJob(f"no ledger knows job {job_id}: check the id and the Redis URL")

"""A job in the producer's hand: wait for it, ask for it, cancel it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Literal
from uuid import UUID

from lorayard.client.session import Session
from lorayard.client.stream import StreamEvent, TokenStream
from lorayard.client.tracked_job import TrackedJob
from lorayard.contract.errors import IdempotencyConflict, JobFailed, ResultExpired, ResultTimeout, UnknownJob
from lorayard.contract.result import JobProgress, JobResult
from lorayard.contract.states import JobState

_NO_VERDICT = "may be another submission's: the ledger has not judged this one"


class JobHandle:
    """One job, submitted by this process or another; `Client.submit` and `Client.job` make it."""

    def __init__(self, session: Session, tracked: TrackedJob, submission_id: UUID | None = None) -> None:
        self._session = session
        self._tracked = tracked
        self._submission_id = submission_id

    def __reduce__(self) -> str:
        raise TypeError(
            f"the handle of job {self.id} belongs to its process: send its id, and call Client.job there"
        )

    def __repr__(self) -> str:
        return f"JobHandle({self.id}, {self._tracked.state or 'unknown'})"

    @property
    def id(self) -> UUID:
        """The job's id, by which any process finds it again."""
        return self._tracked.job_id

    @property
    def session(self) -> Session:
        """What this handle shares with its client."""
        return self._session

    @property
    def tracked(self) -> TrackedJob:
        """What this process knows of the job."""
        return self._tracked

    @property
    def is_settled(self) -> bool:
        """True when nothing more will be heard that concerns this handle."""
        return self._tracked.is_settled(self._submission_id)

    def done(self) -> bool:
        """Tell whether `result` would return or raise at once; never waits for the answer to a question."""
        if self.is_settled:
            return True
        self._session.listen()
        if self._session.tracker.take_due(self._tracked):
            request_id = self._session.ask("lookup", self._tracked)
            self._session.tracker.forget_question(self._tracked, request_id)
        return self.is_settled

    def result(self, timeout: float | None = None, *, raise_on_failure: bool = True) -> JobResult:
        """Wait for the job's end, at most `timeout` seconds.

        Raises JobFailed if it did not succeed (unless `raise_on_failure` is False), ResultTimeout,
        IdempotencyConflict, ResultExpired, UnknownJob. A Redis that restarts meanwhile only delays the
        answer.
        """
        self._wait(lambda: self.is_settled, timeout, "has not ended")
        result = self._outcome()
        if raise_on_failure and result.state is not JobState.SUCCEEDED:
            raise JobFailed(result)
        return result

    def stream(self, timeout: float | None = None) -> Iterator[StreamEvent]:
        """Yield the job's text while it is being written, in pieces that add up to the result's output.

        A job that runs again (its worker was lost) starts over: the first piece of the new attempt has
        `is_restart`, and what came before it is void. A job not submitted with `stream=True`, or one whose
        stream has expired, comes in one piece at its end. Raises as `result` does, ResultTimeout after
        `timeout` seconds; ask again to begin anew from the first token that Redis still has. Under a key the
        text begins once the ledger has said that this submission is the job.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._session.listen()
        self._await_verdict(timeout, deadline)
        tokens = TokenStream(self.id, self._session.link)
        with self._session.tracker.awaiting(self._tracked, lambda: None):
            yield from tokens.events(lambda: self.is_settled, deadline)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        yield from tokens.rest(self.result(left))

    def status(self) -> JobProgress:
        """Ask for the job's state, its place in the queue and when its end is foreseen.

        Raises ResultTimeout if no scheduler answers within the timeout, and IdempotencyConflict,
        ResultExpired and UnknownJob, as `result` does.
        """
        if self._tracked.result is None or not self._has_verdict():
            self._session.tracker.forget_place(self._tracked)
            self._ask("lookup")
        if not self._has_verdict():
            # It waits in the intake; what was heard by then is of another submission.
            return JobProgress(JobState.QUEUED)
        return self._session.tracker.progress(self._tracked)

    def cancel(self) -> JobState:
        """Ask for the job's end; returns the state found, the final one if the job has ended.

        A running job ends a moment later: `result(raise_on_failure=False)` waits for that. Under a key the
        job may be another submission's, with another payload: nothing is cancelled before the ledger has
        said that it is this one's. Raises ResultTimeout if it has not said so within the timeout, and
        IdempotencyConflict, ResultExpired and UnknownJob, as `result` does.
        """
        self._await_verdict(self._session.timeout_s)
        if self._submission_id in self._tracked.unheard:
            raise ResultTimeout(
                f"job {self.id} is not cancelled: Redis lost what the ledger said of this submission, so the "
                "job of its key may be another one's; Client.job(id).cancel() cancels it whosever it is"
            )
        return self._tracked.result.state if self._tracked.result else self._ask("cancel")

    def wait_admitted(self, timeout: float, deadline: float | None = None) -> None:
        """Wait until the ledger holds the job; raises IdempotencyConflict, ResultExpired, ResultTimeout.

        The monotonic `deadline`, which many jobs may share, is `timeout` seconds from now if none is given.
        """
        complaint = "is in Redis, but the ledger has not confirmed it"
        self._wait(self._is_admitted, timeout, complaint, deadline)
        self._raise_if_void()

    def _is_admitted(self) -> bool:
        return self.is_settled or (self._tracked.state is not None and self._has_verdict())

    def _await_verdict(self, timeout: float | None, deadline: float | None = None) -> None:
        """Wait until this submission is known to be the job; raises IdempotencyConflict if it is not."""
        self._wait(self._has_verdict, timeout, _NO_VERDICT, deadline)
        if self._submission_id in self._tracked.conflicts:
            self._raise_if_void()

    def _has_verdict(self) -> bool:
        """Tell whether the job of this name is known to be this submission, or to be none."""
        return self._submission_id not in self._tracked.unconfirmed or self.is_settled

    def _ask(self, kind: Literal["cancel", "lookup"]) -> JobState:
        before = self._tracked.replies
        request_id = self._session.ask(kind, self._tracked, wants_place=kind == "lookup")
        try:
            self._wait(lambda: self._has_answer(request_id), self._session.timeout_s, "got no answer")
        except ResultTimeout:
            # The answer itself may have been lost; news heard since the question will do.
            if self._tracked.replies == before or self._tracked.state is None:
                raise
        finally:
            self._session.tracker.forget_question(self._tracked, request_id)
        self._raise_if_void()
        # A job of ours that the ledger does not know yet waits in the intake.
        return self._tracked.state or JobState.QUEUED

    def _has_answer(self, request_id: UUID) -> bool:
        known = self._tracked.state is not None or self._tracked.is_submitted_here
        return self.is_settled or (known and request_id not in self._tracked.pending)

    def _wait(
        self,
        is_over: Callable[[], bool],
        timeout: float | None,
        complaint: str,
        deadline: float | None = None,
    ) -> None:
        if is_over():
            return
        self._session.listen()
        if deadline is None and timeout is not None:
            deadline = time.monotonic() + timeout
        heard = Event()
        with self._session.tracker.awaiting(self._tracked, heard.set):
            while not is_over():
                self._session.raise_if_deaf()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise ResultTimeout(
                        f"job {self.id} {complaint} within {timeout:g} s: {self._session.excuse()}"
                    )
                heard.wait(left)
                heard.clear()

    def _outcome(self) -> JobResult:
        self._raise_if_void()
        result = self._tracked.result
        assert result is not None
        return result

    def _raise_if_void(self) -> None:
        """Raise if there is no job behind this handle."""
        conflict = self._tracked.conflicts.get(self._submission_id) if self._submission_id else None
        if conflict is not None:
            raise IdempotencyConflict(f"job {self.id}: {conflict.message}")
        if self._tracked.expired is not None and self._tracked.result is None:
            raise ResultExpired(self._tracked.expired.message)
        if self._tracked.lost and self._tracked.is_submitted_here:
            raise UnknownJob(f"job {self.id} was lost by Redis before it was admitted: submit it again")
        if self._tracked.lost:
            raise UnknownJob(f"no ledger knows job {self.id}: check the id and the Redis URL")

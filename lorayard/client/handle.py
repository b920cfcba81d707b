"""A job in the producer's hand: wait for it, ask for it, cancel it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event
from typing import Any, TypeVar
from uuid import UUID

from lorayard.client.job_steps import Exchange, JobSteps, Steps, Wait
from lorayard.client.session import Session
from lorayard.client.stream import StreamEvent, TokenStream, read_stream
from lorayard.client.tracked_job import TrackedJob
from lorayard.contract.result import JobProgress, JobResult
from lorayard.contract.states import JobState

T = TypeVar("T")


class JobHandle:
    """One job, submitted by this process or another; `Client.submit` and `Client.job` make it."""

    def __init__(self, session: Session, tracked: TrackedJob, submission_id: UUID | None = None) -> None:
        self.steps = JobSteps(session, tracked, submission_id)

    def __reduce__(self) -> str:
        raise TypeError(
            f"the handle of job {self.id} belongs to its process: send its id, and call Client.job there"
        )

    def __repr__(self) -> str:
        return f"JobHandle({self.id}, {self.tracked.state or 'unknown'})"

    @property
    def id(self) -> UUID:
        """The job's id, by which any process finds it again."""
        return self.tracked.job_id

    @property
    def session(self) -> Session:
        """What this handle shares with its client."""
        return self.steps.session

    @property
    def tracked(self) -> TrackedJob:
        """What this process knows of the job."""
        return self.steps.tracked

    @property
    def is_settled(self) -> bool:
        """True when nothing more will be heard that concerns this handle."""
        return self.steps.is_settled

    def done(self) -> bool:
        """Tell whether `result` would return or raise at once; never waits for the answer to a question."""
        return self.steps.look()

    def result(self, timeout: float | None = None, *, raise_on_failure: bool = True) -> JobResult:
        """Wait for the job's end, at most `timeout` seconds.

        Raises JobFailed if it did not succeed (unless `raise_on_failure` is False), ResultTimeout,
        IdempotencyConflict, ResultExpired, UnknownJob. A Redis that restarts meanwhile only delays the
        answer.
        """
        return self._take(self.steps.result(timeout, raise_on_failure=raise_on_failure))

    def stream(self, timeout: float | None = None) -> Iterator[StreamEvent]:
        """Yield the job's text while it is being written, in pieces that add up to the result's output.

        A job that runs again (its worker was lost) starts over: the first piece of the new attempt has
        `is_restart`, and what came before it is void. A job not submitted with `stream=True`, or one whose
        stream has expired, comes in one piece at its end. Raises as `result` does, ResultTimeout after
        `timeout` seconds; ask again to begin anew from the first token that Redis still has. Under a key the
        text begins once the ledger has said that this submission is the job.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self.session.listen()
        self._take(self.steps.verdict(timeout, deadline))
        tokens = TokenStream(self.id)
        with self.session.tracker.awaiting(self.tracked, lambda: None):
            yield from read_stream(tokens, self.session.link, lambda: self.is_settled, deadline)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        yield from tokens.rest(self.result(left))

    def status(self) -> JobProgress:
        """Ask for the job's state, its place in the queue and when its end is foreseen.

        Raises ResultTimeout if no scheduler answers within the timeout, and IdempotencyConflict,
        ResultExpired and UnknownJob, as `result` does.
        """
        return self._take(self.steps.status())

    def cancel(self) -> JobState:
        """Ask for the job's end; returns the state found, the final one if the job has ended.

        A running job ends a moment later: `result(raise_on_failure=False)` waits for that. Under a key the
        job may be another submission's, with another payload: nothing is cancelled before the ledger has
        said that it is this one's. Raises ResultTimeout if it has not said so within the timeout, and
        IdempotencyConflict, ResultExpired and UnknownJob, as `result` does.
        """
        return self._take(self.steps.cancel())

    def wait_admitted(self, timeout: float, deadline: float | None = None) -> None:
        """Wait until the ledger holds the job; raises IdempotencyConflict, ResultExpired, ResultTimeout."""
        self._take(self.steps.admitted(timeout, deadline))

    def _take(self, steps: Steps[T]) -> T:
        """Take steps in this thread, up to what they return."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._do(step)
                except Exception as error:  # noqa: BLE001 - the steps decide what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    def _do(self, step: Wait | Exchange) -> Any:
        return step.call() if isinstance(step, Exchange) else self._wait(step)

    def _wait(self, wait: Wait) -> None:
        if wait.is_over():
            return
        self.session.listen()
        deadline, heard = wait.until(), Event()
        with self.session.tracker.awaiting(self.tracked, heard.set):
            while not wait.is_over():
                self.session.raise_if_deaf()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self.steps.timed_out(wait)
                heard.wait(left)
                heard.clear()

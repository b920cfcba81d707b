"""What this process knows of its jobs: one job per job, fed by replies, read by handles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from lorayard.client.tracked_job import FIRST_SILENCE_S, MAX_SILENCE_S, IntakePlace, TrackedJob
from lorayard.contract.messages import JobEnvelope, JobReply
from lorayard.contract.result import JobProgress
from lorayard.contract.states import JobState

Wake = Callable[[], None]


class JobTracker:
    """All watches of one client, thread-safe. A job lives while a handle holds it or somebody waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._tracked: WeakValueDictionary[UUID, TrackedJob] = WeakValueDictionary()
        self._awaited: dict[UUID, tuple[TrackedJob, int]] = {}
        self._last_news_at = clock()
        self.failure: Exception | None = None

    def track(self, job_id: UUID) -> TrackedJob:
        """Return what is known of a job, the same one to every handle."""
        with self._lock:
            return self._find(job_id)

    def _find(self, job_id: UUID) -> TrackedJob:
        job = self._tracked.get(job_id)
        if job is None:
            job = self._tracked[job_id] = TrackedJob(job_id)
        return job

    def expect(self, envelope: JobEnvelope) -> TrackedJob:
        """Make ready for replies to a job that is about to be sent; `submitted` or `withdraw` follows."""
        with self._lock:
            job = self._find(envelope.job_id)
            if envelope.spec.idempotency_key is not None:
                job.has_key = True
                job.unconfirmed.add(envelope.submission_id)
        return job

    def submitted(self, job: TrackedJob, place: IntakePlace) -> None:
        """Note where an expected job went."""
        with self._lock:
            job.submitted(place)

    def withdraw(self, jobs: Iterable[tuple[TrackedJob, JobEnvelope]]) -> None:
        """Expect nothing of submissions that did not go in."""
        with self._lock:
            for job, envelope in jobs:
                job.unconfirmed.discard(envelope.submission_id)

    @contextmanager
    def awaiting(self, job: TrackedJob, wake: Wake) -> Iterator[None]:
        """Call `wake` at every reply for the job, and keep asking for one while inside."""
        self.await_jobs([(job, wake)])
        try:
            yield
        finally:
            self.leave_jobs([(job, wake)])

    def await_jobs(self, waits: Sequence[tuple[TrackedJob, Wake]]) -> None:
        """Begin to wait for jobs; end with `leave_jobs`."""
        with self._lock:
            now = self._clock()
            for job, wake in waits:
                job.subscribers.append(wake)
                _, waiters = self._awaited.get(job.job_id, (job, 0))
                self._awaited[job.job_id] = (job, waiters + 1)
                if waiters == 0:
                    job.begin_waiting()
                    job.silence_s = FIRST_SILENCE_S
                    job.next_lookup_at = now + (FIRST_SILENCE_S if job.is_submitted_here else 0.0)

    def leave_jobs(self, waits: Sequence[tuple[TrackedJob, Wake]]) -> None:
        """End what `await_jobs` began."""
        with self._lock:
            for job, wake in waits:
                job.subscribers.remove(wake)
                _, waiters = self._awaited.pop(job.job_id)
                if waiters > 1:
                    self._awaited[job.job_id] = (job, waiters - 1)

    def apply(self, reply: JobReply) -> TrackedJob | None:
        """Take in one reply; returns the job if the intake must be looked into as well."""
        with self._lock:
            self._last_news_at = now = self._clock()
            job = self._tracked.get(reply.job_id)
            if job is None:
                return None
            is_unclear = job.take(reply, now)
            wakes = tuple(job.subscribers)
        for wake in wakes:
            wake()
        return job if is_unclear else None

    def due_lookups(self, limit: int) -> list[TrackedJob]:
        """Choose the awaited jobs to ask for now, at most `limit`, and set when they are due again."""
        with self._lock:
            now = self._clock()
            silent = now - self._last_news_at >= FIRST_SILENCE_S
            due = [job for job, _ in self._awaited.values() if job.lookup_is_due(now, silent)][:limit]
            for job in due:
                job.next_lookup_at = now + job.silence_s
                job.silence_s = min(2 * job.silence_s, MAX_SILENCE_S)
                # To the end of the queue, so that a long one is asked for in turn.
                self._awaited[job.job_id] = self._awaited.pop(job.job_id)
            return due

    def take_due(self, job: TrackedJob) -> bool:
        """Tell whether a poller should ask for this job now, and set when it is due again."""
        with self._lock:
            now = self._clock()
            if now < job.next_lookup_at:
                return False
            job.next_lookup_at = now + MAX_SILENCE_S
            return True

    def repair_all(self) -> None:
        """Ask for every awaited job soon, whatever else is heard: replies may have been lost."""
        with self._lock:
            for job, _ in self._awaited.values():
                job.repair, job.next_lookup_at, job.silence_s = True, 0.0, FIRST_SILENCE_S

    def asks(self, job: TrackedJob) -> UUID:
        """Note a question before it is sent and return its id, by which `is_answered` knows the answer."""
        request_id = uuid4()
        with self._lock:
            job.asked += 1
            job.pending.add(request_id)
        return request_id

    def forget_place(self, job: TrackedJob) -> None:
        """Know no more where a job stood, because that is about to be asked."""
        with self._lock:
            job.queue_position = job.eta_s = None

    def progress(self, job: TrackedJob) -> JobProgress:
        """Tell how far a job has come, as far as it was told; one that waits in the intake is queued."""
        with self._lock:
            state = job.result.state if job.result else job.state or JobState.QUEUED
            if state.is_terminal:
                return JobProgress(state)
            return JobProgress(state, job.queue_position, job.eta_s)

    def forget_question(self, job: TrackedJob, request_id: UUID) -> None:
        """Wait no longer for the answer to a question."""
        with self._lock:
            job.pending.discard(request_id)

    def gone_from_intake(self, job: TrackedJob) -> None:
        """Note that a job's entry was looked for in the intake and not found."""
        with self._lock:
            job.gone_from_intake()

    def fail(self, error: Exception) -> None:
        """Let every waiter raise: the listener has stopped and will not come back."""
        self.failure = error
        self.wake_all()

    def wake_all(self) -> None:
        """Let every waiter look again."""
        with self._lock:
            wakes = [wake for job, _ in self._awaited.values() for wake in job.subscribers]
        for wake in wakes:
            wake()

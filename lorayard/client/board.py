"""What this process knows of its jobs: one watch per job, fed by replies, read by handles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from lorayard.client.watch import FIRST_SILENCE_S, MAX_SILENCE_S, IntakePlace, JobWatch
from lorayard.contract.messages import JobEnvelope, JobReply

Wake = Callable[[], None]


class JobBoard:
    """All watches of one client, thread-safe. A watch lives while a handle holds it or somebody waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._watches: WeakValueDictionary[UUID, JobWatch] = WeakValueDictionary()
        self._awaited: dict[UUID, tuple[JobWatch, int]] = {}
        self._last_news_at = clock()
        self.failure: Exception | None = None

    def watch(self, job_id: UUID) -> JobWatch:
        """Return the watch of a job, the same one to every handle."""
        with self._lock:
            return self._watches.setdefault(job_id, JobWatch(job_id))

    def expect(self, envelope: JobEnvelope) -> JobWatch:
        """Make ready for replies to a job that is about to be sent; `submitted` or `withdraw` follows."""
        watch = self.watch(envelope.job_id)
        with self._lock:
            if envelope.spec.idempotency_key is not None:
                watch.has_key = True
                watch.unconfirmed.add(envelope.submission_id)
        return watch

    def submitted(self, watch: JobWatch, place: IntakePlace) -> None:
        """Note where an expected job went."""
        with self._lock:
            watch.submitted(place)

    def withdraw(self, jobs: Iterable[tuple[JobWatch, JobEnvelope]]) -> None:
        """Expect nothing of submissions that did not go in."""
        with self._lock:
            for watch, envelope in jobs:
                watch.unconfirmed.discard(envelope.submission_id)

    @contextmanager
    def awaiting(self, watch: JobWatch, wake: Wake) -> Iterator[None]:
        """Call `wake` at every reply for the job, and keep asking for one while inside."""
        self.await_job(watch, wake)
        try:
            yield
        finally:
            self.leave_job(watch, wake)

    def await_job(self, watch: JobWatch, wake: Wake) -> None:
        """Begin to wait for a job; end with `leave_job`."""
        with self._lock:
            watch.subscribers.append(wake)
            _, waiters = self._awaited.get(watch.job_id, (watch, 0))
            self._awaited[watch.job_id] = (watch, waiters + 1)
            if waiters == 0:
                watch.begin_waiting()
                watch.silence_s = FIRST_SILENCE_S
                watch.next_lookup_at = self._clock() + (FIRST_SILENCE_S if watch.is_submitted_here else 0.0)

    def leave_job(self, watch: JobWatch, wake: Wake) -> None:
        """End what `await_job` began."""
        with self._lock:
            watch.subscribers.remove(wake)
            _, waiters = self._awaited.pop(watch.job_id)
            if waiters > 1:
                self._awaited[watch.job_id] = (watch, waiters - 1)

    def apply(self, reply: JobReply) -> JobWatch | None:
        """Take in one reply; returns the watch where the intake must be looked into as well."""
        with self._lock:
            self._last_news_at = now = self._clock()
            watch = self._watches.get(reply.job_id)
            if watch is None:
                return None
            is_unclear = watch.take(reply, now)
            wakes = tuple(watch.subscribers)
        for wake in wakes:
            wake()
        return watch if is_unclear else None

    def due_lookups(self, limit: int) -> list[JobWatch]:
        """Choose the awaited jobs to ask for now, at most `limit`, and set when they are due again."""
        with self._lock:
            now = self._clock()
            silent = now - self._last_news_at >= FIRST_SILENCE_S
            due = [watch for watch, _ in self._awaited.values() if watch.lookup_is_due(now, silent)][:limit]
            for watch in due:
                watch.next_lookup_at = now + watch.silence_s
                watch.silence_s = min(2 * watch.silence_s, MAX_SILENCE_S)
                # To the end of the queue, so that a long one is asked for in turn.
                self._awaited[watch.job_id] = self._awaited.pop(watch.job_id)
            return due

    def take_due(self, watch: JobWatch) -> bool:
        """Tell whether a poller should ask for this job now, and set when it is due again."""
        with self._lock:
            now = self._clock()
            if now < watch.next_lookup_at:
                return False
            watch.next_lookup_at = now + MAX_SILENCE_S
            return True

    def repair_all(self) -> None:
        """Ask for every awaited job soon, whatever else is heard: replies may have been lost."""
        with self._lock:
            for watch, _ in self._awaited.values():
                watch.repair, watch.next_lookup_at, watch.silence_s = True, 0.0, FIRST_SILENCE_S

    def asks(self, watch: JobWatch) -> UUID:
        """Note a question before it is sent and return its id, by which `is_answered` knows the answer."""
        request_id = uuid4()
        with self._lock:
            watch.asked += 1
            watch.pending.add(request_id)
        return request_id

    def forget_question(self, watch: JobWatch, request_id: UUID) -> None:
        """Wait no longer for the answer to a question."""
        with self._lock:
            watch.pending.discard(request_id)

    def gone_from_intake(self, watch: JobWatch) -> None:
        """Note that a job's entry was looked for in the intake and not found."""
        with self._lock:
            watch.gone_from_intake()

    def fail(self, error: Exception) -> None:
        """Let every waiter raise: the listener has stopped and will not come back."""
        self.failure = error
        self.wake_all()

    def wake_all(self) -> None:
        """Let every waiter look again."""
        with self._lock:
            wakes = [wake for watch, _ in self._awaited.values() for wake in watch.subscribers]
        for wake in wakes:
            wake()

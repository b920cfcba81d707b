"""Shows in Flower what the leader does to jobs, on a thread of its own, so that no stall is the leader's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from db.records import FinishedJob
from lorayard.contract.states import JobState
from lorayard.server.flower_events import JobEvents

MAX_WAITING: Final = 50_000
TICK_S: Final = 0.1


class FlowerDesk:
    """Queues notes for `JobEvents`; the oldest are forgotten where too many wait."""

    def __init__(self, events: JobEvents) -> None:
        self._events = events
        self._notes: deque[Callable[[], None]] = deque(maxlen=MAX_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flower", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def close(self) -> None:
        """Show what is left and stop."""
        self._closed.set()
        self._thread.join(timeout=5.0)

    def admitted(self, job_id: UUID, adapter: str | None, tenant: str) -> None:
        """A job is in the ledger."""
        self._notes.append(lambda: self._events.sent(job_id, adapter, tenant))

    def ended(self, finished: Iterable[FinishedJob]) -> None:
        """Jobs have ended without a worker."""
        for job in finished:
            self._notes.append(lambda job=job: self._show_end(job))  # type: ignore[misc]

    def _run(self) -> None:
        while not self._closed.wait(TICK_S):
            self._show()
        self._show()
        self._events.close()

    def _show(self) -> None:
        while self._notes:
            self._notes.popleft()()
        self._events.flush()

    def _show_end(self, job: FinishedJob) -> None:
        if job.state in (JobState.CANCELLED, JobState.EXPIRED):
            self._events.revoked(job.job_id, expired=job.state is JobState.EXPIRED)
        else:
            self._events.failed(job.job_id, str(job.result.error))

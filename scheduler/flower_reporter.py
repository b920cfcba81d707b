"""Shows in Flower what the leader does to jobs, on a thread of its own, so that no stall is the leader's."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from db.records import FinishedJob
from lorayard.contract.states import JobState
from lorayard.process.service_thread import ServiceThread
from lorayard.server.flower_events import JobEvents
from lorayard.server.flower_notes import FlowerNotes

TICK_S: Final = 0.1


class FlowerReporter:
    """Queues notes for `JobEvents`; an observer, so that its failures are nobody else's."""

    def __init__(self, events: JobEvents) -> None:
        self._events = events
        self._notes = FlowerNotes(events)
        self._is_added = threading.Event()
        self._thread = ServiceThread("flower", self._step, on_broken=None, wake=self._is_added.set)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def close(self) -> None:
        """Show what is left and stop."""
        if self._thread.close():
            self._notes.show(self._thread)
            self._events.close()

    def admitted(self, job_id: UUID, adapter: str | None, tenant: str) -> None:
        """A job is in the ledger."""
        self._notes.add(job_id, partial(self._events.sent, job_id, adapter, tenant), is_first=True)
        self._is_added.set()

    def ended(self, finished: Iterable[FinishedJob]) -> None:
        """Jobs have ended without a worker."""
        for job in finished:
            self._notes.add(job.job_id, partial(self._show_end, job), is_last=True)
            self._is_added.set()

    def ended_at_workers(self, job_ids: Sequence[UUID]) -> None:
        """Jobs have ended, which their workers show: what is left to show of them here is the last."""
        self._notes.forget(job_ids)
        self._is_added.set()

    def _step(self) -> None:
        """Wait for notes, let more gather for a moment, and show them."""
        self._is_added.wait()
        if not self._thread.stopping.wait(TICK_S):
            self._is_added.clear()
            self._notes.show(self._thread)

    def _show_end(self, job: FinishedJob) -> None:
        if job.state in (JobState.CANCELLED, JobState.EXPIRED):
            self._events.revoked(job.job_id, expired=job.state is JobState.EXPIRED)
        else:
            self._events.failed(job.job_id, str(job.result.error))

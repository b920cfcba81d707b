"""What waits to be shown of jobs in Flower: with too much of it, jobs are left out whole, never by halves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from lorayard.process.service_thread import ServiceThread
from lorayard.server.flower_events import JobEvents

MAX_WAITING: Final = 50_000


class _Note(NamedTuple):
    job_id: UUID
    show: Callable[[], None]


class FlowerNotes:
    """Mutable, and safe to add to while another thread shows."""

    def __init__(self, events: JobEvents, max_waiting: int = MAX_WAITING) -> None:
        self._events = events
        self._max_waiting = max_waiting
        self._notes: deque[_Note] = deque(maxlen=4 * max_waiting)  # a last resort

    def __len__(self) -> int:
        return len(self._notes)

    def add(
        self, job_id: UUID, show: Callable[[], None], *, is_first: bool = False, is_last: bool = False
    ) -> bool:
        """Keep a note, unless its job is not shown; returns whether nothing waited before it.

        With too many waiting, a job whose first note this is goes unshown altogether.
        """
        if not self._events.shows(job_id):
            if is_last:
                self._events.forget([job_id])
            return False
        if is_first and len(self._notes) >= self._max_waiting:
            self._events.leave_out(job_id)
            return False
        self._notes.append(_Note(job_id, show))
        return len(self._notes) == 1

    def forget(self, job_ids: Sequence[UUID]) -> None:
        """Keep nothing of jobs once what waits of them is shown: their ends are not shown here."""
        if job_ids:
            self._notes.append(_Note(job_ids[0], partial(self._events.forget, job_ids)))

    def show(self, thread: ServiceThread) -> None:
        """Show what waits now, and send it; one that cannot be shown fails alone, as the thread's item."""
        if waiting := len(self._notes):
            notes = (self._notes.popleft() for _ in range(waiting))
            thread.each(notes, lambda note: note.show(), lambda note: {"job_id": str(note.job_id)})
            self._events.flush()

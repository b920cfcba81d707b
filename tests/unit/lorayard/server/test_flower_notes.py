"""Notes for Flower that nobody shows in time are left out by whole jobs."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

from lorayard.process.service_thread import ServiceThread
from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from lorayard.server.flower_notes import FlowerNotes


class Events(JobEvents):
    """Keeps what it would have sent."""

    def __init__(self) -> None:
        super().__init__(make_app("redis://127.0.0.1:1/0"), "test@host")
        self.sent_events: list[tuple[str, str]] = []

    def _publish(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        self.sent_events += [(kind, fields["uuid"]) for kind, fields in events]


def test_with_too_many_waiting_a_job_is_left_out_from_its_first_event_to_its_last() -> None:
    events = Events()
    notes = FlowerNotes(events, max_waiting=2)
    shown, left_out = uuid4(), uuid4()

    notes.add(shown, lambda: events.received(shown, None, "t"), is_first=True)
    notes.add(shown, lambda: events.started(shown))
    notes.add(left_out, lambda: events.received(left_out, None, "t"), is_first=True)
    notes.add(left_out, lambda: events.started(left_out))
    notes.add(left_out, lambda: events.succeeded(left_out, "x", 1.0))
    notes.add(shown, lambda: events.succeeded(shown, "x", 1.0))
    notes.show(ServiceThread("flower", lambda: None, on_broken=None))

    assert events.sent_events == [
        (kind, str(shown)) for kind in ("task-received", "task-started", "task-succeeded")
    ]
    assert events.num_dropped_jobs == 1
    assert len(notes) == 0


def test_of_a_job_beyond_the_budget_nothing_is_kept() -> None:
    events = Events()
    notes = FlowerNotes(events)
    left_out = uuid4()
    events.leave_out(left_out)

    told = [
        notes.add(left_out, lambda: events.started(left_out), is_last=is_last) for is_last in (False, True)
    ]

    assert (told, len(notes)) == ([False, False], 0)
    assert events.shows(left_out), "its last note has gone, so a later job of this id would be judged anew"


def test_only_the_first_note_that_waits_is_worth_a_wakeup() -> None:
    events = Events()
    notes = FlowerNotes(events)
    job_ids = [uuid4(), uuid4()]

    told = [notes.add(one, partial(events.started, one)) for one in job_ids]
    notes.show(ServiceThread("flower", lambda: None, on_broken=None))

    assert told == [True, False]
    assert notes.add(job_ids[0], lambda: None) is True

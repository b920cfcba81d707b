"""Notes for Flower that nobody shows in time are left out by whole jobs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from uuid import uuid4

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
    notes.show(lambda **_: nullcontext())

    assert events.sent_events == [
        (kind, str(shown)) for kind in ("task-received", "task-started", "task-succeeded")
    ]
    assert events.num_dropped_jobs == 1
    assert len(notes) == 0

"""What the leader keeps in mind of jobs that it shows in Flower."""

from __future__ import annotations

from uuid import uuid4

from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from scheduler.flower_reporter import FlowerReporter


def test_a_job_that_ended_at_its_worker_is_forgotten_even_before_its_admission_was_shown() -> None:
    events = JobEvents(make_app("redis://127.0.0.1:1/0"), "test@host")  # nobody is there: nothing is sent
    reporter = FlowerReporter(events)
    ended, queued = uuid4(), uuid4()

    reporter.start()
    reporter.admitted(ended, None, "tenant")
    reporter.admitted(queued, None, "tenant")
    reporter.ended_at_workers([ended])
    reporter.close()

    assert events.num_open_jobs == 1

"""How events are kept within Flower's means."""

from __future__ import annotations

from uuid import UUID

from lorayard.server.event_pacer import EventPacer


def ids(number: int) -> list[UUID]:
    return [UUID(int=value) for value in range(number)]


def test_within_the_budget_every_job_is_shown() -> None:
    pacer = EventPacer(100.0)
    assert all(pacer.admits(job_id, 0.0) for job_id in ids(100))
    assert pacer.num_dropped_jobs == 0


def test_above_the_budget_whole_jobs_are_left_out_and_counted() -> None:
    pacer = EventPacer(10.0)
    shown = [job_id for job_id in ids(200) if pacer.admits(job_id, 0.0)]

    assert 10 < len(shown) < 100
    assert pacer.num_dropped_jobs == 200 - len(shown)
    assert all(pacer.admits(job_id, 0.0) for job_id in shown)


def test_two_processes_that_halved_equally_keep_the_same_jobs() -> None:
    one, two = EventPacer(10.0), EventPacer(10.0)
    assert [one.admits(i, 0.0) for i in ids(300)] == [two.admits(i, 0.5) for i in ids(300)]


def test_when_traffic_calms_down_every_job_is_shown_again() -> None:
    pacer = EventPacer(10.0)
    for job_id in ids(100):
        pacer.admits(job_id, 0.0)
        pacer.forget(job_id)

    for second in range(1, 40):
        pacer.admits(UUID(int=0), float(second))
        pacer.forget(UUID(int=0))

    assert pacer.admits(UUID(int=1), 41.0)

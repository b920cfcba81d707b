"""What dies is started again, later each time, until it has been well for a while."""

from __future__ import annotations

from lorayard.local.supervision import Backoff


def test_a_first_death_is_followed_by_a_start_one_second_later() -> None:
    backoff = Backoff()

    assert backoff.died("worker-1", 100.0) == 1.0

    assert backoff.due(100.9) == []
    assert backoff.due(101.0) == ["worker-1"]
    assert backoff.due(101.1) == []


def test_a_death_is_noted_once_however_often_it_is_seen() -> None:
    backoff = Backoff()
    backoff.died("worker-1", 100.0)

    assert backoff.died("worker-1", 100.5) is None
    assert backoff.due(101.0) == ["worker-1"]


def test_the_delay_doubles_with_every_early_death_up_to_half_a_minute() -> None:
    backoff = Backoff()
    now_s, delays = 0.0, []

    for _ in range(7):
        delay_s = backoff.died("scheduler", now_s)
        assert delay_s is not None
        delays.append(delay_s)
        now_s += delay_s
        assert backoff.due(now_s) == ["scheduler"]

    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_process_that_ran_for_a_minute_begins_anew() -> None:
    backoff = Backoff()
    for now_s in (0.0, 10.0):
        backoff.died("relay", now_s)
        backoff.due(now_s + 5.0)

    assert backoff.died("relay", 15.0 + 60.0) == 1.0


def test_processes_are_counted_apart() -> None:
    backoff = Backoff()
    backoff.died("worker-1", 0.0)
    backoff.due(1.0)
    backoff.died("worker-1", 2.0)

    assert backoff.died("worker-2", 2.0) == 1.0


def test_it_waits_from_a_death_until_the_restart_is_due_or_forgotten() -> None:
    backoff = Backoff()
    before = backoff.is_waiting

    backoff.died("relay", 0.0)
    backoff.died("worker-1", 0.0)
    backoff.forget("worker-1")
    planned = backoff.is_waiting
    backoff.due(1.0)

    assert (before, planned, backoff.is_waiting) == (False, True, False)

"""What recurs is due when its period has passed, which may be longer while there is nothing to do."""

from __future__ import annotations

from scheduler.periodic import PeriodicTask


def test_it_is_due_at_once_and_then_each_time_its_period_has_passed() -> None:
    task = PeriodicTask(0.5)

    assert [task.is_due(now) for now in (10.0, 10.4, 10.5, 10.9)] == [True, False, True, False]


def test_an_idle_loop_has_it_later_and_one_with_work_again_at_its_own_period() -> None:
    task = PeriodicTask(0.25, 1.0)
    task.is_due(10.0, is_idle=True)

    idle = [task.is_due(now, is_idle=True) for now in (10.3, 10.9, 11.0)]
    busy = [task.is_due(now) for now in (11.2, 11.3)]

    assert (idle, busy) == ([False, False, True], [False, True])


def test_what_is_hastened_is_due_in_an_idle_loop_too() -> None:
    task = PeriodicTask(0.5, 1.0)
    task.is_due(10.0, is_idle=True)

    task.hasten()

    assert task.is_due(10.1, is_idle=True)

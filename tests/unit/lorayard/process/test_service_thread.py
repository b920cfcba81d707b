"""What a background loop does with exceptions, on a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from lorayard.process import service_thread
from lorayard.process.restarts import RestartBudget
from lorayard.process.service_thread import OUTAGE_PAUSE_S, ServiceThread
from tests.polling import eventually


@pytest.fixture(autouse=True)
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    """What the loops have logged."""
    with capture_logs() as lines:
        yield lines


class Outage(Exception):
    pass


class Loop:
    """A loop whose steps do in turn what the test says, then wait for the end."""

    def __init__(self, *steps: Exception | Callable[[], None], observer: bool = False) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []
        self.broken: list[str] = []
        self.num_steps = 0
        self._steps: Iterator[Exception | Callable[[], None]] = iter(steps)
        self.thread = ServiceThread(
            "loop",
            self._step,
            on_broken=None if observer else self.broken.append,
            is_outage=lambda error: isinstance(error, Outage),
            clock=lambda: self.now_s,
            pause=self.pauses.append,
        )

    def run(self) -> None:
        """Run until the steps are used up or the loop has ended."""
        self.thread.start()
        eventually(lambda: not self.thread.is_alive, timeout_s=60.0, what="the loop's end")

    def _step(self) -> None:
        self.num_steps += 1
        step = next(self._steps, None)
        if step is None:
            self.thread.stop()
        elif isinstance(step, Exception):
            raise step
        else:
            step()


def test_a_loop_begins_anew_three_times_and_then_has_the_process_drain(
    log: list[MutableMapping[str, Any]],
) -> None:
    loop = Loop(*[RuntimeError("again")] * 9)

    loop.run()

    assert loop.num_steps == 4
    assert loop.broken == ["loop"]
    assert [line["event"] for line in log] == ["service.restarted"] * 3 + ["service.broken"]


def test_restarts_of_more_than_a_minute_ago_are_forgiven() -> None:
    loop = Loop()
    failures = 12

    def fail_after_20_s() -> None:
        loop.now_s += 20.0
        raise RuntimeError("every 20 s")

    loop._steps = iter([fail_after_20_s] * failures)
    loop.run()

    assert loop.num_steps == failures + 1
    assert loop.broken == []


def test_the_fourth_restart_within_a_minute_is_one_too_many() -> None:
    now_s = 0.0
    budget = RestartBudget(lambda: now_s)

    taken = []
    for now_s in (0.0, 30.0, 59.0, 59.9, 60.0, 89.0):  # noqa: B007 - the clock reads it
        taken.append(budget.take())

    assert taken == [True, True, True, False, True, False]


def test_a_budget_goes_on_where_another_process_left_it() -> None:
    first = RestartBudget(lambda: 100.0, max_restarts=2, window_s=600.0)
    assert first.take()

    second = RestartBudget(lambda: 200.0, max_restarts=2, window_s=600.0, taken_at=first.taken_at)
    assert (second.take(), second.take()) == (True, False)

    much_later = RestartBudget(lambda: 701.0, max_restarts=2, window_s=600.0, taken_at=second.taken_at)
    assert (much_later.take(), much_later.taken_at) == (True, (200.0, 701.0))


def test_outages_are_ridden_out_for_ever() -> None:
    loop = Loop(*[Outage("away")] * 50)

    loop.run()

    assert loop.num_steps == 51
    assert loop.pauses == [OUTAGE_PAUSE_S] * 50
    assert loop.broken == []


def test_an_observer_begins_anew_for_ever_at_longer_intervals() -> None:
    loop = Loop(*[RuntimeError("again")] * 20, observer=True)

    loop.run()

    assert loop.num_steps == 21
    assert loop.pauses[:3] == [0.1] * 3
    assert loop.pauses[3:] == [5.0] * 17


def test_not_even_an_exit_ends_a_loop_unseen() -> None:
    def leave() -> None:
        raise SystemExit(3)

    loop = Loop(*[leave] * 4)

    loop.run()

    assert loop.broken == ["loop"]


def test_one_item_fails_alone_but_an_outage_is_the_loop_s_affair(
    log: list[MutableMapping[str, Any]],
) -> None:
    loop = Loop()
    seen = []

    def deal() -> None:
        for number in range(3):
            with loop.thread.item(number=number):
                if number == 1:
                    raise KeyError(number)
                seen.append(number)
        with loop.thread.item():
            raise Outage("away")

    loop._steps = iter([deal])
    loop.run()

    assert seen == [0, 2]
    assert log[0]["event"] == "item.failed"
    assert (log[0]["where"], log[0]["number"]) == ("loop", 1)
    assert loop.pauses == [OUTAGE_PAUSE_S]


def test_a_step_that_waits_is_woken_by_the_close() -> None:
    woken = threading.Event()
    thread = ServiceThread("waits", woken.wait, on_broken=None, wake=woken.set)  # type: ignore[arg-type]
    thread.start()
    thread.start()

    assert thread.close()
    assert not thread.is_alive


def test_closing_says_when_a_step_does_not_end() -> None:
    release = threading.Event()
    thread = ServiceThread("stuck", release.wait, on_broken=None)  # type: ignore[arg-type]
    thread.start()

    assert not thread.close(timeout_s=0.01)
    release.set()
    assert thread.close()


def test_one_that_was_closed_before_its_start_never_runs() -> None:
    loop = Loop()

    loop.thread.close()
    loop.thread.start()

    assert not loop.thread.is_alive
    assert loop.num_steps == 0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("it cannot be put into words")


@pytest.mark.parametrize("error", [RuntimeError("again"), Unspeakable()])
def test_a_log_that_fails_ends_no_thread_unseen(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def __getattr__(self, level: str) -> Callable[..., None]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(service_thread, "logger", FullDisk())
    loop = Loop(error, Outage(), *[error] * 9)

    loop.run()

    assert (loop.num_steps, loop.broken) == (5, ["loop"])


def test_an_error_that_cannot_be_judged_is_no_outage() -> None:
    def judge(error: BaseException) -> bool:
        raise RuntimeError("what is this?") from error

    def fail() -> None:
        raise KeyError("odd")

    broken: list[str] = []
    thread = ServiceThread("odd", fail, on_broken=broken.append, is_outage=judge, pause=lambda _: None)
    thread.start()

    eventually(lambda: broken == ["odd"], 60.0, "the end")

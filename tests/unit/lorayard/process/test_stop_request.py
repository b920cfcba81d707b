"""The wish to end, made by signal handlers within signal handlers."""

from __future__ import annotations

import signal
import threading

from lorayard.process.stop_request import StopRequest, hold_back
from tests.unit.lorayard.process.signal_bursts import num_hanging


def test_bursts_of_signals_hang_no_process() -> None:
    assert num_hanging(5) == 0


def test_it_wakes_whoever_waits_and_stays_made() -> None:
    stop = StopRequest()
    woken: list[bool] = []
    waiter = threading.Thread(target=lambda: woken.append(stop.wait()))
    waiter.start()

    assert not stop.is_set()
    assert not stop.wait(0.0)
    stop.set()
    stop.set()
    waiter.join(10.0)

    assert woken == [True]
    assert stop.wait()
    assert stop.is_set()


def test_a_signal_that_was_held_back_is_heard_by_the_next_listener() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = StopRequest()
    try:
        hold_back()
        signal.raise_signal(signal.SIGTERM)
        assert not stop.wait(0.0)

        stop.listen()

        assert stop.wait(10.0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

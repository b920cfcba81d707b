"""The wish that this process end, which a signal handler may make: one byte into a pipe, and no lock."""

from __future__ import annotations

import atexit
import os
import select
import signal
import weakref
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Final

TERMINATION: Final = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Mutable: made once, never taken back. Used like a `threading.Event`, and by any thread.

    `threading.Event` itself is no good in a handler: `set` takes a lock, and a second signal that arrives
    within it waits in the same thread for that lock, forever.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._is_set = False
        # Not at exit: a signal may come until the very end.
        weakref.finalize(self, _close, self._reader, self._writer).atexit = False

    def set(self) -> None:
        """Wish it; once more does nothing."""
        if not self._is_set:
            self._is_set = True
            # A handler may come between these lines and write as well: a byte more changes nothing.
            with suppress(BlockingIOError):
                os.write(self._writer, b"\0")

    def is_set(self) -> bool:
        """Whether it was wished."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the wish, forever without a timeout; returns whether it was made."""
        if not self._is_set:
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        return self._is_set

    def fileno(self) -> int:
        """For event loops: what becomes readable with the wish, and stays so."""
        return self._reader

    def listen(self, signals: Iterable[signal.Signals] = TERMINATION) -> None:
        """Make it on these signals from now on, and on those that were blocked; for the main thread."""
        wanted = tuple(signals)
        for number in wanted:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        # Python takes its handlers back before a process is gone: a late signal would spoil a good end.
        atexit.register(hold_back, wanted)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.set()


def hold_back(signals: Iterable[signal.Signals] = TERMINATION) -> None:
    """Keep these signals pending, through an exec too, until a `StopRequest` listens again."""
    signal.pthread_sigmask(signal.SIG_BLOCK, tuple(signals))


def _close(reader: int, writer: int) -> None:
    os.close(reader)
    os.close(writer)

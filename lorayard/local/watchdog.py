"""Holds the process that ends a stack's process groups when their holder dies without a word."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from lorayard.local.processes import ProcessIdentity

_SCRIPT = Path(__file__).with_name("watchdog_process.py")


class Watchdog:
    """One process at the other end of a pipe; the pipe closes when this process dies, however it dies."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and script
            [sys.executable, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    @property
    def pid(self) -> int:
        """Return the watchdog's process id."""
        return self._process.pid

    def follow(self, leader: ProcessIdentity) -> None:
        """Kill this leader's process group should this process die."""
        self._write(f"+{leader.pid} {leader.start_ticks}\n")

    def forget(self, leader: ProcessIdentity) -> None:
        """Leave this leader's group alone: it has ended."""
        self._write(f"-{leader.pid}\n")

    def close(self) -> None:
        """End the watchdog, and with it every group that it still follows."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # A watchdog that was killed is a lost second net, no reason to fail: the first one is the kernel's.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

"""Sends bursts of SIGTERM to a process that waits for one, and counts those that hang.

`python -m tests.unit.lorayard.process.signal_bursts 500` is the long run; the suite does a short one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

from lorayard.process import stop_request

BURST = 20
APART_S = 0.0003
GRACE_S = 20.0

WAITING = f"""
import runpy, time
stop = runpy.run_path({stop_request.__file__!r})["StopRequest"]()
stop.listen()
print("ready", flush=True)
assert stop.wait()
time.sleep(0.05)
"""
"""It lives on for a while, so that the whole burst meets the handler."""


def send_burst(process: subprocess.Popen[Any]) -> None:
    """Send SIGTERM again and again, as impatient supervisors do."""
    for _ in range(BURST):
        process.send_signal(signal.SIGTERM)
        until = time.perf_counter() + APART_S
        while time.perf_counter() < until:
            pass


def num_hanging(rounds: int, program: str = WAITING) -> int:
    """Count the processes that did not end in order within their grace."""
    hanging = 0
    for _ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            send_burst(process)
            try:
                # A signal may still come as the interpreter ends, when its handlers are gone.
                hanging += process.wait(GRACE_S) not in (0, -signal.SIGTERM)
            except subprocess.TimeoutExpired:
                process.kill()
                hanging += 1
    return hanging


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    print(
        f"{num_hanging(wanted)} of {wanted} processes hung under {BURST} SIGTERMs {APART_S * 1000:g} ms apart"
    )

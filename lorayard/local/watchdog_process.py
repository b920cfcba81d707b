"""Kills the process groups of a stack whose holder died; run as a script on the standard library.

The parent-death signal reaches the direct children only. This process outlives the holder by a moment and
ends what those children had started. Its standard input carries `+pid start_ticks` for a group born and
`-pid` for one that ended; end of file means that the holder is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

# Longer than Redis and Postgres need to shut down in order once their death signal has come.
_GRACE_S = 5.0
_POLL_S = 0.02


def main() -> None:
    """Follow the groups until the holder dies, then end those that are left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        words = line[1:].split()
        if line.startswith("+"):
            groups[int(words[0])] = int(words[1])
        elif line.startswith("-"):
            groups.pop(int(words[0]), None)
    _end(groups)


def _end(groups: dict[int, int]) -> None:
    deadline = time.monotonic() + _GRACE_S
    while groups:
        for pid, start_ticks in list(groups.items()):
            leader = _leader(pid, start_ticks)
            if leader == "running" and time.monotonic() < deadline:
                continue
            del groups[pid]
            if leader != "another":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _leader(pid: int, start_ticks: int) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"  # a pid is not reused while it still names a group: what is left in it is ours
    if int(fields[19]) != start_ticks:
        return "another"
    return "gone" if fields[0] == "Z" else "running"


if __name__ == "__main__":
    main()

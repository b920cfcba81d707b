"""A worker whose service threads fail when a file says so; run by tests as a script.

The file that is the only argument holds "NAME once" or "NAME ever": the next step of that thread, or every
one from then on, raises.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lorayard.process.service_thread import ServiceThread
from workers.launch import main

_ORDER = Path(sys.argv[1])
_run_step = ServiceThread.run_step


def _run_or_fail(thread: ServiceThread) -> None:
    order = _ORDER.read_text().split() if _ORDER.exists() else ["", ""]
    if order[:1] == [thread.name]:
        if order[1] == "once":
            _ORDER.unlink()
        raise RuntimeError("told to fail")
    _run_step(thread)


if __name__ == "__main__":
    ServiceThread.run_step = _run_or_fail  # type: ignore[assignment, method-assign]
    sys.exit(main())

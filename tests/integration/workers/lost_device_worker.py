"""A worker whose engine's device fails while a file says so; run by tests as a script.

The file that is the only argument says what fails: see `tests/unit/workers/engine/failing_device.py`, which
is imported by the engine's process alone, because a worker's own loads no torch.
"""

from __future__ import annotations

import sys

from workers import lost_device
from workers.engine.serving import process
from workers.launch import main

_FAILING = "tests.unit.workers.engine.failing_device"

if __name__ == "__main__":
    process._PROGRAM = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"from {_FAILING} import main\n"
        f"main(int(sys.argv[3]), {sys.argv[1]!r})\n"
    )
    lost_device.FIRST_PAUSE_S = 0.1
    sys.exit(main())

"""`python -m workers`: one worker process."""

from __future__ import annotations

import gc
import sys

# Looking for garbage among what is imported, which stays, took a third of the start.
gc.disable()
from lorayard.process.environment import run_service, withdraw_readiness  # noqa: E402
from lorayard.process.garbage import imports_are_done  # noqa: E402

if __name__ == "__main__":
    withdraw_readiness()

from workers.launch import main  # noqa: E402

imports_are_done()

if __name__ == "__main__":
    sys.exit(run_service(main))

"""`python -m workers`: one worker process."""

from __future__ import annotations

import gc
import sys

# Looking for garbage among what is imported, which stays, took a third of the start.
gc.disable()
from lorayard.process.environment import leave_out_extras, run_service, withdraw_readiness  # noqa: E402
from lorayard.process.garbage import imports_are_done  # noqa: E402
from lorayard.process.packages import require_own_packages  # noqa: E402

if __name__ == "__main__":
    leave_out_extras()
    withdraw_readiness()
    require_own_packages("workers")

from workers.launch import main  # noqa: E402

imports_are_done()

if __name__ == "__main__":
    sys.exit(run_service(main))

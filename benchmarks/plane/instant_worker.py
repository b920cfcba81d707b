"""`python -m benchmarks.plane.instant_worker`: a worker as it is, but for the program of its engine."""

from __future__ import annotations

import sys

from benchmarks.plane.instant_engine import PROGRAM
from lorayard.process.environment import run_service
from lorayard.process.garbage import imports_are_done
from workers.engine.serving import process
from workers.launch import main

if __name__ == "__main__":
    process._PROGRAM = PROGRAM
    imports_are_done()
    sys.exit(run_service(main))

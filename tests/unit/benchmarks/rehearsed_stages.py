"""Rehearses stages of the script for a card one after another in this process; run by tests as a script.

Its arguments are the folder and the stages. Those that fork come first, while this process has no threads.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.stages import run_stage
from tests.unit.workers.engine.loader_pool import shared_loaders

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    with shared_loaders():
        sys.exit(max(run_stage(name, Path(folder), rehearse=True) for name in names))

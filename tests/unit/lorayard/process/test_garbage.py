"""A service does not look through what it has imported."""

from __future__ import annotations

import subprocess
import sys

_SHOW = """
import gc
gc.disable()
from lorayard.process.garbage import THRESHOLDS, imports_are_done
imports_are_done()
assert gc.get_freeze_count() > 1000 and len(gc.get_objects()) < 1000
assert gc.isenabled() and gc.get_threshold() == THRESHOLDS
"""


def test_what_was_imported_is_frozen_and_collecting_is_on() -> None:
    subprocess.run([sys.executable, "-c", _SHOW], check=True, timeout=60)

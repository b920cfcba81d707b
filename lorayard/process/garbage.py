"""Sets up the garbage collector for services, which make many small objects for each job and few cycles."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (10_000, 10, 10)
"""Python's own (700, 10, 10) took a tenth of a submit, with a few thousand jobs in hand."""


def imports_are_done() -> None:
    """Never look through what is there by now, and through what comes less often; collecting is on then."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()

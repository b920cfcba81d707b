"""Where an adapter revision lies in the store that command line, workers and scheduler share."""

from __future__ import annotations

from pathlib import Path


def revision_folder(store: Path, digest: str) -> Path:
    """Name the folder of a revision: the hex part of its digest."""
    return store / digest.rpartition(":")[2]

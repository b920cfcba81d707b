"""What command line, workers and scheduler know of the adapter store that they share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MARKER: Final = ".lorayard-store"
"""In a store's folder from its first day: where a file system is not mounted, its mount point has none."""

_REVISION = re.compile(r"[0-9a-f]{64}")


def revision_folder(store: Path, digest: str) -> Path:
    """Name the folder of a revision: the hex part of its digest."""
    return store / digest.rpartition(":")[2]


def is_store(folder: Path) -> bool:
    """Tell a store from a folder to mount one upon, or from none; raises OSError if it cannot be read.

    Stores of releases that wrote no marker are known by the revisions in them.
    """
    if (folder / MARKER).is_file():
        return True
    return folder.is_dir() and any(_REVISION.fullmatch(one.name) for one in folder.iterdir())


def make_store(folder: Path) -> None:
    """Make a store of a folder, which need not exist yet; the one above it must."""
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_text("An adapter store of Lorayard. Leave this file here: docs/adapters.md\n")

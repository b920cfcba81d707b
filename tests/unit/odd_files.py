"""What may bear a file's name without being one."""

from __future__ import annotations

import os
from pathlib import Path

ODD_FILES = ("dangling link", "folder", "FIFO")


def make_odd_file(path: Path, kind: str) -> str:
    """Put one there; returns how messages call it, as a regular expression."""
    path.unlink(missing_ok=True)
    if kind == "dangling link":
        path.symlink_to("nowhere")
        return "a link to 'nowhere', which is not there"
    if kind == "folder":
        path.mkdir()
        return "a folder"
    os.mkfifo(path)
    return "a FIFO"

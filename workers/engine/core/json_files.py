"""The files of a folder that somebody else has filled: whether one is there, and its JSON."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from workers.engine.core.errors import CheckpointError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def irregular(mode: int) -> str | None:
    """Say what a file is, by its `st_mode`, if it is not a regular one."""
    if stat.S_ISREG(mode):
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")


def is_there(path: Path) -> bool:
    """Whether a regular file is there, links followed; CheckpointError for anything else of that name."""
    try:
        kind = irregular(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return False
        kind = f"a link to {str(path.readlink())!r:.200}, which is not there"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be looked at: {error}; make it readable") from error
    if kind is None:
        return True
    raise CheckpointError(f"{path} is {kind}; put the file itself there, or take it away")


def read_json(path: Path, *, remedy: str = "download the checkpoint again") -> dict[str, Any] | None:
    """Return a file's JSON object, None if there is no file; CheckpointError, with `remedy`, otherwise."""
    if not is_there(path):
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; make it readable") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; {remedy}")
    return values

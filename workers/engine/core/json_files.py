"""The JSON files of a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.engine.core.errors import CheckpointError


def read_json(path: Path, *, remedy: str = "download the checkpoint again") -> dict[str, Any] | None:
    """Return a file's JSON object, None if there is no file; CheckpointError, with `remedy`, otherwise."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; {remedy}")
    return values

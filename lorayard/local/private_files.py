"""Keeps secrets in files that only their owner can read."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace a file's content in one step, never readable by others, never half written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_or_create(path: Path, create: Callable[[], str]) -> str:
    """Return the secret kept in `path`, made by `create` the first time."""
    if not path.exists():
        write_private(path, create())
    return path.read_text()


def new_password() -> str:
    """Return a password that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def new_key() -> str:
    """Return 32 random bytes in URL-safe base64, the form of a Fernet key."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()

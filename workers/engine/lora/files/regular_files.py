"""Reads files of folders that strangers fill: regular ones only, no more of them than is allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from workers.engine.core.errors import AdapterFileError, AdapterTooLarge
from workers.engine.core.json_files import irregular

_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 32 << 20
"""Of a safetensors file: LoRA on 128 experts in each of 48 layers takes some 5 MiB."""

_LFS_POINTER = b"version https://git-lfs"


@contextmanager
def open_regular(path: Path, label: str) -> Iterator[IO[bytes]]:
    """Open a regular file, links followed; AdapterFileError for anything else, which is never waited for."""
    _require_regular(path.stat().st_mode, path, label)
    descriptor = _open(path)
    with os.fdopen(descriptor, "rb") as stream:
        _require_regular(os.fstat(descriptor).st_mode, path, label)  # it may be another one by now
        yield stream


def _require_regular(mode: int, path: Path, label: str) -> None:
    if (kind := irregular(mode)) is not None:
        raise AdapterFileError(
            f"{label}: {path.name!r} is {kind}, not a regular file; put the file itself there"
        )


def _open(path: Path) -> int:
    try:
        # Without O_NONBLOCK opening a FIFO waits for whoever writes to it.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:  # another process has leased it, as file servers do, and lets go when asked
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_regular(path: Path, label: str, *, max_bytes: int) -> bytes:
    """Read a regular file; AdapterTooLarge, with nothing read, if it has more than `max_bytes`."""
    with open_regular(path, label) as stream:
        size = os.fstat(stream.fileno()).st_size
        _check_size(size, path, label, max_bytes)
        return _read(stream, size, path, label)


def read_weights(path: Path, label: str, *, max_bytes: int) -> bytes:
    """Read a safetensors file, if its size is what its header says; nothing of it is kept before that."""
    with open_regular(path, label) as stream:
        size = os.fstat(stream.fileno()).st_size
        declared = _declared_bytes(stream, size, path, label)
        if size != declared:
            raise AdapterFileError(
                f"{label}: {path.name} ({size} bytes) is corrupt or truncated (its header says {declared} "
                "bytes); copy or save it again"
            )
        _check_size(size, path, label, max_bytes)
        stream.seek(0)
        return _read(stream, size, path, label)


def _declared_bytes(stream: IO[bytes], size: int, path: Path, label: str) -> int:
    start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise AdapterFileError(
            f"{label}: {path.name} ({size} bytes) is a pointer of Git LFS, not the weights; run git lfs pull"
        )
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    most = min(size - _LENGTH_BYTES, MAX_HEADER_BYTES)
    wrong = f"it begins with a header of {length} bytes, which must be 1 to {max(most, 1)}"
    try:
        if 0 < length <= most:
            wrong = "its header is not JSON"
            stream.seek(_LENGTH_BYTES)
            header = json.loads(stream.read(length))
            wrong = "its header does not say where each tensor lies"
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            return _LENGTH_BYTES + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        cause: Exception | None = error
    else:
        cause = None
    raise AdapterFileError(
        f"{label}: {path.name} ({size} bytes) is corrupt or truncated ({wrong}); copy or save it again"
    ) from cause


def _check_size(size: int, path: Path, label: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise AdapterTooLarge(
            f"{label}: {path.name} has {size} bytes, at most {max_bytes} are read, more than any adapter of "
            "this base needs; save the adapter alone, without the base's weights"
        )


def _read(stream: IO[bytes], size: int, path: Path, label: str) -> bytes:
    content = stream.read(size + 1)
    if len(content) != size:
        raise AdapterFileError(
            f"{label}: {path.name} had {size} bytes and changed while it was read; try again once nothing "
            "writes to it"
        )
    return content

"""An adapter's identity: a digest over the names, sizes and bytes of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from workers.engine.core.errors import AdapterIOError
from workers.engine.lora.files.adapter_files import find_files
from workers.engine.lora.files.regular_files import open_regular

_CHUNK_BYTES = 1 << 20


def adapter_digest(path: str | Path) -> str:
    """Return "sha256:<hex>" over the configuration and weight files; AdapterError if any is missing."""
    folder = Path(path)
    label = f"adapter at {folder}"
    digest = hashlib.sha256()
    for file in find_files(folder, label):
        try:
            _add_file(digest, file, label)
        except OSError as error:
            raise AdapterIOError(f"{label}: reading {file} failed ({error}); try again") from error
    return f"sha256:{digest.hexdigest()}"


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the digest of files already read; the same as `adapter_digest` of the folder they came from."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(_frame(name, len(files[name])))
        digest.update(files[name])
    return f"sha256:{digest.hexdigest()}"


def _add_file(digest: hashlib._Hash, file: Path, label: str) -> None:
    with open_regular(file, label) as stream:
        digest.update(_frame(file.name, os.fstat(stream.fileno()).st_size))
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)


def _frame(name: str, size: int) -> bytes:
    # Name and size before the bytes: moving a byte from one file to the next must change the digest.
    return f"{name}\0{size}\0".encode()

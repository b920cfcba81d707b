"""Appends records to a file, each on the disk before the caller goes on, and reads them back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """One file of JSON lines; a line that a killed writer left half is ended, and skipped by readers."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("ab")
        if is_torn:
            self._file.write(b"\n")

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records with the time, all of them in one write and one fsync."""
        now = time.time()
        lines = [json.dumps({"at": now, **record}) + "\n" for record in records]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read the whole records of files, in the order given; a missing file has none."""
    for path in paths:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # the line that its writer was killed in

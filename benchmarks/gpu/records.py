"""What stages find, written as one JSON line each at the moment it is known."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Recorder:
    """Appends a stage's records to the results; several processes may append at once."""

    folder: Path
    stage: str

    def fact(self, name: str, value: Any) -> None:
        """Write what was found out about the machine."""
        self._write(kind="fact", name=name, value=value)

    def check(self, kernel: str, case: str, *, error: float, limit: float, passed: bool) -> None:
        """Write whether a result was right, how far off it was and how far off it may be."""
        self._write(kind="check", kernel=kernel, case=case, error=error, limit=limit, passed=passed)

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        goal: float | None = None,
        **details: Any,
    ) -> None:
        """Write a measurement where less is better, its floor and its goal, all three in `unit`."""
        self._write(kind="figure", name=name, value=value, unit=unit, floor=floor, goal=goal, **details)

    def row(self, table: str, **cells: str | float | None) -> None:
        """Write a row of a table of the report: what explains figures, in columns of its own."""
        self._write(kind="row", table=table, cells=cells)

    def failure(self, name: str, trace: str) -> None:
        """Write what broke, with the end of its traceback."""
        self._write(kind="failure", name=name, trace=trace[-4000:])

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Record what breaks inside, and go on after it."""
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever it is, the rest is still worth measuring
            self.failure(name, traceback.format_exc())

    def ended(self, seconds: float, outcome: str) -> None:
        """Write how a stage ended."""
        self._write(kind="stage", seconds=round(seconds, 1), outcome=outcome)

    def _write(self, **record: Any) -> None:
        line = json.dumps({"stage": self.stage, **record}) + "\n"
        descriptor = os.open(self.folder / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(descriptor)


def copy_bytes_per_s(folder: Path) -> float | None:
    """Return the first ceiling as the environment stage measured it; None if it has not run."""
    found = [one["value"] for one in read(folder) if one.get("name") == "copy_bytes_per_s"]
    return float(found[0]) if found else None


def read(folder: Path) -> list[dict[str, Any]]:
    """Return every record so far."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

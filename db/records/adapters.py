"""Adapter revisions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """One adapter's weights, named by their content digest."""

    digest: str
    rank: int
    targets: tuple[str, ...]
    bytes: int

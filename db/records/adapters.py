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
    warnings: tuple[str, ...] = ()  # what is uncertain about it


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """A name as people see it in a list, with what stands behind it now."""

    pool: str
    model_name: str | None  # the pool's; None, as the next, if no worker has registered for it yet
    model_path: str | None
    name: str
    state: str  # "active" or "quarantined"
    revision: str
    rank: int
    bytes: int
    warnings: list[str]

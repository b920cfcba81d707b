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
    state: str  # "active", "cooling" or "quarantined"
    revision: str
    rank: int
    bytes: int
    warnings: list[str]
    reason: str | None = None  # why it is quarantined, or where it could not be loaded


@dataclass(frozen=True, slots=True)
class StoreFailureRow:
    """A revision that could not be loaded from one store; its times are seconds from now."""

    digest: str
    store: str
    code: str
    reason: str
    first_ago_s: float
    failed_ago_s: float
    left_s: float  # until the store is asked for it again; negative once it may be
    pause_s: float
    tries: int

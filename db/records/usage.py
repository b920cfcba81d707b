"""Usage, as a worker reports it and as people read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """Usage that belongs to no single job's end; `adapter=None` is the base model."""

    tenant: str
    adapter: str | None
    loads: int = 0
    load_ms: float = 0.0
    hits: int = 0
    evictions: int = 0
    failures: int = 0
    wasted_device_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage summed over a time; the column not asked for is None, and so is the base model's adapter."""

    adapter: str | None
    tenant: str | None
    jobs: int
    prompt_tokens: int
    completion_tokens: int
    device_ms: float
    queue_ms: float
    loads: int
    load_ms: float
    hits: int
    evictions: int
    failures: int
    wasted_device_ms: float

"""Usage, as people read it."""

from __future__ import annotations

from dataclasses import dataclass


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

"""Tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant; `weight` is its share if others wait as well."""

    name: str
    weight: float
    has_secret: bool
    rotating: bool


@dataclass(frozen=True, slots=True)
class TenantServiceRow:
    """What a tenant was served in a pool, and what its counter is lifted by under which weight."""

    tenant: str
    prompt_tokens: int
    completion_tokens: int
    lift: float
    weight: float


class TenantQuota(NamedTuple):
    """What a tenant may have queued in each pool, and submit there; None is no limit."""

    tenant: str
    max_queued_jobs: int | None = None
    max_tokens_per_s: float | None = None

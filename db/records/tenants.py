"""Tenants."""

from __future__ import annotations

from dataclasses import dataclass


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

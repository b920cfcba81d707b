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

"""What an engine tells of where its adapters are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["device", "host", "none"]


@dataclass(frozen=True, slots=True)
class ResidencyChange:
    """A revision moved to `tier`; epochs count from 1 and never repeat."""

    epoch: int
    revision: str
    tier: Tier

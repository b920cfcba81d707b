"""What people have paused."""

from __future__ import annotations

from typing import Literal, NamedTuple

PauseKind = Literal["pool", "tenant", "adapter"]
EVERY_POOL = "*"
"""The pool of a tenant's pause."""


class PauseRow(NamedTuple):
    """One thing whose queued jobs wait; a pool's name is its id."""

    kind: PauseKind
    pool: str
    name: str
    paused_s: float

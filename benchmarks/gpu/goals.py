"""What a step may take on a card: shares of its floor, and of a step of the base."""

from __future__ import annotations

_GOAL_OF_BASE = {1: 1.3}
_GOAL_OF_OTHER_BATCHES = 1.25
_GOALS_WITH_ADAPTERS = {(1, 16): 1.05, (8, 16): 1.10, (32, 16): 1.25, (8, 64): 1.25, (32, 64): 1.75}
_BATCH_OF_GOALS = 32

UNUSED_LORA = 1.01
"""A step of an engine that could serve adapters but runs none, over one of an engine that cannot."""
HOST_SHARE, BATCH_OF_HOST_SHARE = 0.6, 64
"""What the host takes of what the device takes."""
ACTIVATION_MS = 20.0
"""Of an adapter of rank 16 from the host's memory."""
LONGEST_STEP = 1.5
"""While adapters load, over the median without."""


def of_base(batch: int) -> float:
    """Return how many times its floor a step of the base may take."""
    return _GOAL_OF_BASE.get(batch, _GOAL_OF_OTHER_BATCHES)


def with_adapters(batch: int, count: int, rank: int) -> float | None:
    """Return how many times as long as the base's a step with adapters may take; None: no goal is set."""
    return _GOALS_WITH_ADAPTERS.get((count, rank)) if batch == _BATCH_OF_GOALS else None

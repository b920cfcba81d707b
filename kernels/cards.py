"""What a card can do."""

from __future__ import annotations

from functools import cache

import torch


@cache
def capability(device: torch.device) -> int:
    """Return a card's major compute capability; 0 for what is no card."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0

"""One rank's share of a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.core.errors import ConfigError


class Shard(NamedTuple):
    """Which of how many equal parts."""

    tp_rank: int
    tp_size: int

    def of(self, total: int, what: str) -> int:
        """Return a part's size; ConfigError names what cannot be divided."""
        if total % self.tp_size:
            raise ConfigError(f"{total} {what} cannot be shared by {self.tp_size} ranks; choose a divisor")
        return total // self.tp_size

    def cut(self, tensor: Tensor, dim: int, sections: Sequence[int], what: str) -> Tensor:
        """Return this rank's part of each section along `dim`, the parts again side by side."""
        parts = []
        for section in tensor.split(list(sections), dim=dim):
            size = self.of(section.shape[dim], what)
            parts.append(section.narrow(dim, self.tp_rank * size, size))
        return torch.cat(parts, dim=dim).contiguous()

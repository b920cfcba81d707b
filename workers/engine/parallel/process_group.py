"""The ranks of a model as a group of torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroupComm:
    """Sums and joins over a process group: gloo between CPUs, NCCL between GPUs."""

    is_alone = False

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._size = dist.get_world_size(group)

    @property
    def tp_rank(self) -> int:
        """This rank's number."""
        return dist.get_rank(self._group)

    def add(self, part: Tensor) -> Tensor:
        """Return the sum over all ranks, in place of the part."""
        dist.all_reduce(part, group=self._group)
        return part

    def join(self, part: Tensor) -> Tensor:
        """Return every rank's columns side by side."""
        parts = [torch.empty_like(part) for _ in range(self._size)]
        dist.all_gather(parts, part.contiguous(), group=self._group)
        return torch.cat(parts, dim=-1)

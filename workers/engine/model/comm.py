"""What the ranks of a tensor-parallel model say to one another within a step; alone, nothing."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Comm(Protocol):
    """Joins what each rank has computed of the same step."""

    @property
    def tp_rank(self) -> int:
        """This rank's number."""
        ...

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        ...

    def add(self, part: Tensor) -> Tensor:
        """Return the sum over all ranks of a tensor of this shape."""
        ...

    def join(self, part: Tensor) -> Tensor:
        """Return every rank's columns side by side."""
        ...


class Alone:
    """The only rank: every part is the whole."""

    tp_rank = 0
    is_alone = True

    def add(self, part: Tensor) -> Tensor:
        """Return the part."""
        return part

    def join(self, part: Tensor) -> Tensor:
        """Return the part."""
        return part

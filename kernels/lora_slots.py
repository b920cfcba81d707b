"""What a LoRA kernel reads of the adapters: a packed module's weights, and the slots that point at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Slice(NamedTuple):
    """One sub-module's columns in the packed output."""

    start: int
    end: int


class LoRASlice(NamedTuple):
    """One sub-module's B with the scaling folded in, and the columns of the shrunk rows that it expands."""

    out: Slice
    rank: Slice
    b_t: Tensor  # [rank_padded, out_slice], B transposed


@dataclass(frozen=True, slots=True)
class PackedLoRA:
    """One adapter's LoRA of one packed module; sub-modules the adapter lacks are absent, not zero."""

    a: Tensor  # [sum of rank_padded, in_features], every present sub-module's A, stacked
    slices: tuple[LoRASlice, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.a, *(part.b_t for part in self.slices)))


class PackedModuleSlots:
    """A packed module's slots: `entries[slot]` is an adapter's weights, or None where it lacks the module."""

    def __init__(self, *, in_features: int, out_slices: Sequence[int], num_slots: int) -> None:
        """`out_slices` are the output widths of the sub-modules, in the order they are packed."""
        self.in_features = in_features
        self.out_features = sum(out_slices)
        self.entries: list[PackedLoRA | None] = [None] * num_slots

    def set(self, slot: int, weights: PackedLoRA | None) -> None:
        """Point `slot` at an adapter's weights; nothing is copied."""
        self.entries[slot] = weights

"""What a LoRA kernel reads of the adapters: a packed module's weights, and the slots that point at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# In plain torch with 16 columns or more no shape tried depended on the batch, odd widths included; narrower
# ones did (AMD, 2026-11). So packers round ranks up to this.
RANK_MULTIPLE = 16
MAX_RANK = 1024
"""Of one sub-module: the compiled kernel keeps a tile's shrunk rows on its stack."""
NUM_DORA_TERMS = 5
_NUM_TABLE_COLUMNS = 5


class Slice(NamedTuple):
    """One sub-module's columns in the packed output."""

    start: int
    end: int


class LoRASlice(NamedTuple):
    """One sub-module's B with the scaling folded in, and the columns of the shrunk rows that it expands.

    `dora` holds per column of the output, which is a row of W: its trained magnitude, |W|^2, 2 W.BA, |BA|^2
    and the base's bias; the sum of base and adapter is scaled to that magnitude.
    """

    out: Slice
    rank: Slice
    b_t: Tensor  # [rank_padded, out_slice], B transposed
    bias: Tensor | None = None  # [out_slice] float32, of lora_B, with the scaling folded in
    dora: Tensor | None = None  # [NUM_DORA_TERMS, out_slice] float32

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return tuple(tensor for tensor in (self.b_t, self.bias, self.dora) if tensor is not None)


@dataclass(frozen=True, slots=True)
class PackedLoRA:
    """One adapter's LoRA of one packed module; sub-modules the adapter lacks are absent, not zero."""

    a: Tensor  # [sum of rank_padded, in_features], every present sub-module's A, stacked
    slices: tuple[LoRASlice, ...]

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + sum(tensor.nbytes for part in self.slices for tensor in part.tensors)


@dataclass(frozen=True, slots=True)
class SlotRows:
    """Weights as a module's table describes them, checked, so that pointing slots at them is one copy."""

    entries: tuple[PackedLoRA, ...]  # hold the tensors behind the addresses
    table: Tensor  # [num_entries, num_slices, 5] int64
    dtype: torch.dtype


class PackedModuleSlots:
    """A packed module's slots: `entries[slot]` is an adapter's weights, or None where it lacks the module."""

    def __init__(self, *, in_features: int, out_slices: Sequence[int], num_slots: int) -> None:
        """`out_slices` are the output widths of the sub-modules, in the order they are packed."""
        self.in_features = in_features
        self.out_features = sum(out_slices)
        self.entries: list[PackedLoRA | None] = [None] * num_slots
        self.dtype: torch.dtype | None = None  # of all weights; None before the first
        # For the compiled kernel: addresses of A and B, rank, those of bias and DoRA terms; 0 where absent.
        self.table = torch.zeros(num_slots, len(out_slices), _NUM_TABLE_COLUMNS, dtype=torch.int64)
        self.columns = torch.tensor([0, *out_slices]).cumsum(0)  # [num_slices + 1] int64
        self._places = {start: place for place, start in enumerate(self.columns.tolist()[:-1])}

    def set(self, slot: int, weights: PackedLoRA | None) -> None:
        """Point `slot` at an adapter's weights, copying nothing; ValueError for a layout no kernel reads."""
        if weights is None:
            self.clear(torch.tensor([slot]))
        else:
            self.point(torch.tensor([slot]), self.describe([weights]))

    def describe(self, entries: Sequence[PackedLoRA]) -> SlotRows:
        """Check weights, at least one, and describe them for `point`; ValueError as in `set`."""
        dtype = entries[0].a.dtype
        rows = [self._describe(weights, dtype) for weights in entries]
        return SlotRows(tuple(entries), torch.tensor(rows, dtype=torch.int64), dtype)

    def point(
        self,
        slots: Tensor,  # [num_entries] int64
        rows: SlotRows,
    ) -> None:
        """Point slots at the weights described, one at each, copying none of them."""
        if self.dtype not in (None, rows.dtype):
            raise ValueError(
                f"the adapter is {rows.dtype}, the other slots are {self.dtype}; give all one dtype"
            )
        self.dtype = rows.dtype
        for slot, weights in zip(slots.tolist(), rows.entries, strict=True):
            self.entries[slot] = weights
        self.table.index_copy_(0, slots, rows.table)

    def clear(
        self,
        slots: Tensor,  # [num_slots] int64
    ) -> None:
        """Empty slots."""
        for slot in slots.tolist():
            self.entries[slot] = None
        self.table.index_fill_(0, slots, 0)

    def _describe(self, weights: PackedLoRA, dtype: torch.dtype) -> list[list[int]]:
        if weights.a.dtype is not dtype:
            raise ValueError(f"the adapter is {weights.a.dtype} and {dtype}; give all its modules one dtype")
        rows = [[0] * _NUM_TABLE_COLUMNS for _ in self._places]
        first, row_bytes = weights.a.data_ptr(), self.in_features * weights.a.itemsize
        for part in weights.slices:
            self._check(weights.a, part)
            extras = [0 if extra is None else extra.data_ptr() for extra in (part.bias, part.dora)]
            ranks = part.rank.end - part.rank.start
            a, b = first + part.rank.start * row_bytes, part.b_t.data_ptr()
            rows[self._places[part.out.start]] = [a, b, ranks, *extras]
        return rows

    def _check(self, a: Tensor, part: LoRASlice) -> None:
        rank, width = part.rank.end - part.rank.start, part.out.end - part.out.start
        num_ranks, in_features = a.shape
        is_inside = part.rank.end <= num_ranks and in_features == self.in_features
        if not is_inside or part.b_t.shape != (rank, width) or rank > MAX_RANK:
            raise ValueError(
                f"A is {tuple(a.shape)} and B {tuple(part.b_t.shape)} for rank {rank}; they must be "
                f"[ranks, {self.in_features}] and ({rank}, {width}), the rank at most {MAX_RANK}"
            )
        if not (a.is_contiguous() and part.b_t.is_contiguous()) or part.b_t.dtype is not a.dtype:
            raise ValueError("A and B must be contiguous and of one dtype; pack the adapter again")
        _check_extras(part, width)


def _check_extras(part: LoRASlice, width: int) -> None:
    if part.bias is None and part.dora is None:
        return
    for extra, shape in ((part.bias, (width,)), (part.dora, (NUM_DORA_TERMS, width))):
        if extra is not None and (
            tuple(extra.shape) != shape or extra.dtype is not torch.float32 or not extra.is_contiguous()
        ):
            raise ValueError(
                f"bias or DoRA terms are {extra.dtype} {tuple(extra.shape)}; give contiguous float32 {shape}"
            )

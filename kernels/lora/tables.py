"""The one table that LoRA kernels read: a row per slot, which says where an adapter's weights lie.

A row has an entry for every packed module of the model, for each of its slices and of its experts; an entry
is five integers: the addresses of A and B, the rank, and the addresses of bias and DoRA terms, 0 for what an
adapter lacks. Rows are made once, when an adapter is loaded. Giving an adapter a slot copies one row and none
of its weights. All that kernels know of adapters is data in this table, so that a CPU's kernel and a captured
graph can read the same thing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

# In plain torch with 16 columns or more no shape tried depended on the batch, odd widths included; narrower
# ones did (AMD, 2026-11). So packers round ranks up to this.
RANK_MULTIPLE = 16
MAX_RANK = 1024
"""Of one sub-module: the compiled kernel keeps a tile's shrunk rows on its stack."""
NUM_DORA_TERMS = 5
ENTRY_COLUMNS = 5


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
    num_trained: int | None = None  # ranks before the padding, which is zeros in A and B; None: all

    @property
    def num_ranks(self) -> int:
        """The ranks that kernels read."""
        return self.rank.end - self.rank.start if self.num_trained is None else self.num_trained

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
        """Count the bytes of both factors, every slice's included."""
        return self.a.nbytes + sum(tensor.nbytes for part in self.slices for tensor in part.tensors)


class PackedShape(NamedTuple):
    """What the table must know of a packed module."""

    in_features: int
    out_slices: tuple[int, ...]  # output widths of the sub-modules, in the order they are packed
    dtype: torch.dtype
    num_experts: int = 1  # each has matrices of this shape
    is_lookup: bool = False  # of an embedding: in_features are its tokens, and A is [in_features, rank]


class WeightsKey(NamedTuple):
    """Whose weights: a module by the name it has in the table, and the expert."""

    module: Hashable
    expert: int = 0


AdapterLoRA = Mapping[WeightsKey, PackedLoRA]
"""An adapter's LoRA of all modules that it changes."""


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """An adapter as a row of the table, checked, so that giving it a slot is one copy."""

    addresses: Tensor  # [num_entries, ENTRY_COLUMNS] int64
    weights: AdapterLoRA  # hold the tensors behind the addresses


class LoRAModule:
    """One packed module as kernels see it: the table, and where the module's entries lie in every row."""

    def __init__(
        self,
        name: Hashable,
        shape: PackedShape,
        first_entry: int,
        table: Tensor,
        held: list[AdapterLoRA],
        max_rank: int,
    ) -> None:
        self.name = name
        self.in_features = shape.in_features
        self.out_features = sum(shape.out_slices)
        self.dtype = shape.dtype
        self.num_experts = shape.num_experts
        self.is_lookup = shape.is_lookup
        self.out_slices = shape.out_slices
        self.num_slices = len(shape.out_slices)
        self.max_slice_features = max(shape.out_slices)
        self.is_aligned = all(width % 16 == 0 for width in shape.out_slices)
        self.max_rank = max_rank
        self.first_entry = first_entry  # of slice 0 of expert 0; slices are next to each other, then experts
        self.table = table  # [num_slots, num_entries, ENTRY_COLUMNS] int64, of all modules
        bounds = list(accumulate(shape.out_slices, initial=0))
        self.columns = torch.tensor(bounds, device=table.device)  # [num_slices + 1] int64
        self._places = {start: place for place, start in enumerate(bounds[:-1])}
        self._held = held

    def weights(self, slot: int, expert: int = 0) -> PackedLoRA | None:
        """Return what a slot's adapter has for this module; None if it lacks it."""
        return self._held[slot].get(WeightsKey(self.name, expert))

    def place(self, part: LoRASlice) -> int:
        """Return which of the module's slices a sub-module is."""
        return self._places[part.out.start]

    def entries(self, weights: PackedLoRA, expert: int) -> list[tuple[int, tuple[int, int, int, int, int]]]:
        """Return an adapter's entries by their place in a row; ValueError for a layout no kernel reads."""
        if not 0 <= expert < self.num_experts:
            raise ValueError(f"expert {expert} of {self.name!r}, which has {self.num_experts}")
        if weights.a.dtype is not self.dtype:
            raise ValueError(
                f"the adapter is {weights.a.dtype}, but {self.name!r} takes {self.dtype}; load it in that"
            )
        first, row_bytes = weights.a.data_ptr(), self.in_features * weights.a.itemsize
        entries = []
        for part in weights.slices:
            self._check(weights.a, part)
            bias, dora = (0 if extra is None else extra.data_ptr() for extra in (part.bias, part.dora))
            place = self.first_entry + expert * self.num_slices + self.place(part)
            a = first + part.rank.start * row_bytes
            entries.append((place, (a, part.b_t.data_ptr(), part.num_ranks, bias, dora)))
        return entries

    @property
    def _shape_of_a(self) -> str:
        return f"[{self.in_features}, rank]" if self.is_lookup else f"[ranks, {self.in_features}]"

    def _check(self, a: Tensor, part: LoRASlice) -> None:
        rank, width = part.rank.end - part.rank.start, part.out.end - part.out.start
        num_ranks, in_features = a.shape[::-1] if self.is_lookup else a.shape
        is_inside = part.rank.end <= num_ranks and in_features == self.in_features
        if not is_inside or part.b_t.shape != (rank, width) or rank > self.max_rank or part.num_ranks > rank:
            raise ValueError(
                f"A is {tuple(a.shape)} and B {tuple(part.b_t.shape)} for rank {rank}; they must be "
                f"{self._shape_of_a} and ({rank}, {width}), the rank at most {self.max_rank}"
            )
        if not (a.is_contiguous() and part.b_t.is_contiguous()) or part.b_t.dtype is not a.dtype:
            raise ValueError("A and B must be contiguous and of one dtype; pack the adapter again")
        _check_extras(part, width)


class LoRATable:
    """Every slot's row. The tensor and the modules stay the same for the engine's life; contents change."""

    def __init__(
        self,
        shapes: Mapping[Hashable, PackedShape],
        num_slots: int,
        *,
        max_rank: int = MAX_RANK,
        device: str = "cpu",
    ) -> None:
        """`max_rank` bounds the grids of GPU kernels; padding counts."""
        if not 0 < max_rank <= MAX_RANK:
            raise ValueError(f"max_rank is {max_rank}; give 1 to {MAX_RANK}")
        num_entries = sum(len(shape.out_slices) * shape.num_experts for shape in shapes.values())
        self.addresses = torch.zeros(num_slots, num_entries, ENTRY_COLUMNS, dtype=torch.int64, device=device)
        self._held: list[AdapterLoRA] = [{} for _ in range(num_slots)]
        self._modules: dict[Hashable, LoRAModule] = {}
        first_entry = 0
        for name, shape in shapes.items():
            self._modules[name] = LoRAModule(name, shape, first_entry, self.addresses, self._held, max_rank)
            first_entry += len(shape.out_slices) * shape.num_experts

    def module(self, name: Hashable) -> LoRAModule:
        """Return a packed module; it is the same object for the life of the table."""
        return self._modules[name]

    def describe(self, weights: AdapterLoRA) -> AdapterRow:
        """Check an adapter and lay out its row; ValueError for a layout no kernel reads."""
        addresses = torch.zeros(self.addresses.shape[1:], dtype=torch.int64)
        rows = addresses.numpy()
        for key, packed in weights.items():
            for place, entry in self._modules[key.module].entries(packed, key.expert):
                rows[place] = entry
        return AdapterRow(addresses, dict(weights))

    def point(self, slot: int, row: AdapterRow) -> None:
        """Make `slot` serve an adapter: one copy, after which nothing of the last one is left."""
        self.addresses[slot].copy_(row.addresses, non_blocking=True)  # truly so from pinned memory
        self._held[slot] = row.weights

    def clear(self, slot: int) -> None:
        """Make `slot` serve nothing."""
        self.addresses[slot] = 0
        self._held[slot] = {}

    def adapter(self, slot: int) -> AdapterLoRA:
        """Return the weights that a slot serves."""
        return self._held[slot]


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

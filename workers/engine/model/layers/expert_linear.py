"""One linear module of every expert, with the adapters of each row on top."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.experts.expert_rows import ExpertRows
from kernels.experts.grouped_linear import StackedLinear
from kernels.experts.sort_by_expert import SortedRows
from kernels.linear.quantized_linear import AnyLinear
from kernels.linear.row_padding import padded_rows
from kernels.lora.add import LoRAAdd
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.side_stream import SideStream


class ExpertLinear(Protocol):
    """y = W_e x + B_e(A_e x) for rows sorted by expert e, the second for the rows that have adapters."""

    def __call__(
        self,
        x: Tensor,  # [num_sorted_rows, in_features], or with `gathers` [num_rows, in_features]
        rows: SortedRows,
        segments: Segments | None,  # of the sorted rows; None: no row has an adapter
        *,
        gathers: bool = False,
    ) -> Tensor:  # [num_sorted_rows, out_features]
        """Multiply each row with its expert's weights; `gathers`: x has the rows of the batch."""
        ...


class SeparateExperts:
    """`ExpertLinear` that multiplies one expert after another."""

    def __init__(self, linears: Sequence[AnyLinear], slots: LoRAModule | None, lora_add: LoRAAdd) -> None:
        """`slots` has every expert's matrices; None if the engine serves no adapters."""
        self._linears = linears
        self._lora_add = lora_add
        self._slots = slots

    def __call__(
        self, x: Tensor, rows: SortedRows, segments: Segments | None, *, gathers: bool = False
    ) -> Tensor:
        """Multiply each row with its expert's weights; `gathers`: x has the rows of the batch."""
        assert isinstance(rows, ExpertRows), "rows that were sorted on a device"
        x = x.index_select(0, rows.sources) if gathers else x
        parts = [
            self._linears[expert](padded_rows(x[start:end]))[: end - start]
            for expert, start, end in rows.bounds
        ]
        out = torch.cat(parts)
        if segments is not None and self._slots is not None:
            self._lora_add(out, x, segments, self._slots)
        return out


class GroupedExperts:
    """`ExpertLinear` with one product for all experts, which finds its rows itself."""

    def __init__(
        self, linear: StackedLinear, slots: LoRAModule | None, lora_add: LoRAAdd, side: SideStream | None
    ) -> None:
        """`slots` has every expert's matrices; None if the engine serves no adapters."""
        self._linear = linear
        self._lora_add = lora_add
        self._slots = slots
        self._side = side

    def __call__(
        self, x: Tensor, rows: SortedRows, segments: Segments | None, *, gathers: bool = False
    ) -> Tensor:
        """Multiply each row with its expert's weights; `gathers`: x has the rows of the batch."""
        if segments is None or self._slots is None:
            return self._linear(x, rows, gathers=gathers)
        if gathers:  # A is multiplied with sorted rows
            x = x.index_select(0, rows.sources)
        # Made anew each time, for the product of these rows; a step that is replayed makes none.
        product: Any = partial(self._linear, rows=rows, gathers=False)
        return AdaptedLinear(product, self._slots, self._lora_add, self._side)(x, segments)


def expert_linear(
    linears: Sequence[AnyLinear] | StackedLinear,
    slots: LoRAModule | None,
    lora_add: LoRAAdd,
    side: SideStream | None,
) -> ExpertLinear:
    """Connect one module's weights as they were loaded; `side` is where A x may be computed meanwhile."""
    if isinstance(linears, StackedLinear):
        return GroupedExperts(linears, slots, lora_add, side)
    return SeparateExperts(linears, slots, lora_add)

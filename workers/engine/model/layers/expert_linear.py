"""One linear module of every expert, with the adapters of each row on top."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kernels.experts.expert_rows import ExpertRows
from kernels.experts.grouped_linear import StackedLinear
from kernels.experts.sort_by_expert import SortedRows
from kernels.linear.quantized_linear import AnyLinear
from kernels.linear.row_padding import padded_rows
from kernels.lora.segments import Segments
from workers.engine.model.layers.adapted_linear import Adapted


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

    def __init__(self, linears: Sequence[AnyLinear], adapted: Adapted) -> None:
        """`adapted` has every expert's matrices."""
        self._linears = linears
        self._adapted = adapted

    def __call__(
        self, x: Tensor, rows: SortedRows, segments: Segments | None, *, gathers: bool = False
    ) -> Tensor:
        """Multiply each row with its expert's weights; `gathers`: x has the rows of the batch."""
        assert isinstance(rows, ExpertRows), "rows that were sorted on a device"
        x = x.index_select(0, rows.sources) if gathers else x
        return self._adapted(partial(self._multiply, rows=rows), x, segments)

    def _multiply(self, x: Tensor, rows: ExpertRows) -> Tensor:
        parts = [
            self._linears[expert](padded_rows(x[start:end]))[: end - start]
            for expert, start, end in rows.bounds
        ]
        return torch.cat(parts)


class GroupedExperts:
    """`ExpertLinear` with one product for all experts, which finds its rows itself."""

    def __init__(self, linear: StackedLinear, adapted: Adapted) -> None:
        """`adapted` has every expert's matrices."""
        self._linear = linear
        self._adapted = adapted

    def __call__(
        self, x: Tensor, rows: SortedRows, segments: Segments | None, *, gathers: bool = False
    ) -> Tensor:
        """Multiply each row with its expert's weights; `gathers`: x has the rows of the batch."""
        if gathers and segments is not None and self._adapted.has_slots:
            x, gathers = x.index_select(0, rows.sources), False  # A is multiplied with sorted rows
        return self._adapted(partial(self._linear, rows=rows, gathers=gathers), x, segments)


def expert_linear(linears: Sequence[AnyLinear] | StackedLinear, adapted: Adapted) -> ExpertLinear:
    """Connect one module's weights as they were loaded."""
    if isinstance(linears, StackedLinear):
        return GroupedExperts(linears, adapted)
    return SeparateExperts(linears, adapted)

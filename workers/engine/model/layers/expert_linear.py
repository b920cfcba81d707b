"""One linear module of every expert, with the adapters of each row on top."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.experts.expert_rows import ExpertRows
from kernels.linear.quantized_linear import AnyLinear
from kernels.linear.row_padding import padded_rows
from kernels.lora.add import LoRAAdd
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule


class ExpertLinear:
    """y = W_e x + B_e(A_e x) for rows sorted by expert e, the second for the rows that have adapters."""

    def __init__(self, linears: Sequence[AnyLinear], slots: LoRAModule | None, lora_add: LoRAAdd) -> None:
        """`slots` has every expert's matrices; None if the engine serves no adapters."""
        self._linears = linears
        self._lora_add = lora_add
        self._slots = slots

    def __call__(
        self,
        x: Tensor,  # [num_sorted_rows, in_features]
        rows: ExpertRows,
        segments: Segments | None,  # of the sorted rows; None: no row has an adapter
    ) -> Tensor:  # [num_sorted_rows, out_features]
        """Multiply each row with its expert's weights."""
        parts = [
            self._linears[expert](padded_rows(x[start:end]))[: end - start]
            for expert, start, end in rows.bounds
        ]
        out = torch.cat(parts)
        if segments is not None and self._slots is not None:
            self._lora_add(out, x, segments, self._slots)
        return out

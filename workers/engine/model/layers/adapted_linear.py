"""A linear module of the base with the adapters of each row on top."""

from __future__ import annotations

from torch import Tensor

from kernels.lora import add_lora
from kernels.lora_slots import PackedModuleSlots
from kernels.quantized_linear import AnyLinear
from kernels.segments import Segments


class AdaptedLinear:
    """y = W x + bias + B(Ax), the last for the rows that have adapters."""

    def __init__(self, linear: AnyLinear, slots: PackedModuleSlots | None) -> None:
        """`slots` is None where the engine serves no adapters."""
        self._linear = linear
        self._slots = slots

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
        segments: Segments | None,  # None: no row has an adapter
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        out = self._linear(x)
        if segments is not None and self._slots is not None:
            add_lora(out, x, segments, self._slots)
        return out

"""A linear module of the base with the adapters of each row on top."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.quantized_linear import AnyLinear
from kernels.lora.add import LoRAAdd
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule


class AdaptedLinear:
    """y = W x + bias + B(Ax), the last for the rows that have adapters."""

    def __init__(self, linear: AnyLinear, slots: LoRAModule | None, lora_add: LoRAAdd) -> None:
        """`slots` is None if the engine serves no adapters."""
        self._lora_add = lora_add
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
            self._lora_add(out, x, segments, self._slots)
        return out

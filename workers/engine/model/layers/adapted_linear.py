"""A linear module of the base with the adapters of each row on top."""

from __future__ import annotations

from torch import Tensor

from kernels.linear.quantized_linear import AnyLinear
from kernels.lora.add import LoRAAdd, halves_of
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from workers.engine.model.layers.side_stream import SideStream


class AdaptedLinear:
    """y = W x + bias + B(Ax), the last for the rows that have adapters."""

    def __init__(
        self,
        linear: AnyLinear,
        slots: LoRAModule | None,
        lora_add: LoRAAdd,
        side: SideStream | None = None,
    ) -> None:
        """`slots` is None if the engine serves no adapters. `side` is where A x may be computed meanwhile."""
        self._lora_add = lora_add
        self._halves = halves_of(lora_add)
        self._side = side
        self._linear = linear
        self._slots = slots

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
        segments: Segments | None,  # None: no row has an adapter
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        slots, side, halves = self._slots, self._side, self._halves
        if segments is None or slots is None:
            return self._linear(x)
        if side is not None and halves is not None and side.is_open:
            shrunk = side.fork(lambda: halves.shrink(x, segments, slots))
            out = self._linear(x)
            side.join()
            halves.expand(out, shrunk, segments, slots)
            return out
        out = self._linear(x)
        self._lora_add(out, x, segments, slots)
        return out

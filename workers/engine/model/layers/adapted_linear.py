"""A linear module of the base with the adapters of each row on top."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.linear.quantized_linear import AnyLinear
from kernels.lora.add import LoRAAdd, halves_of
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from workers.engine.model.layers.side_stream import SideStream


class Adapted:
    """W x + B(Ax) for any product W x, the second for the rows that have adapters."""

    def __init__(self, slots: LoRAModule | None, lora_add: LoRAAdd, side: SideStream | None = None) -> None:
        """`slots` is None if the engine serves no adapters. `side` is where A x may be computed meanwhile."""
        self._lora_add = lora_add
        self._halves = halves_of(lora_add)
        self._side = side
        self._slots = slots

    @property
    def has_slots(self) -> bool:
        """Whether the engine serves adapters."""
        return self._slots is not None

    def __call__(
        self,
        multiply: Callable[[Tensor], Tensor],
        x: Tensor,  # [num_rows, in_features]
        segments: Segments | None,  # None: no row has an adapter
    ) -> Tensor:  # [num_rows, out_features]
        """Return what `multiply` makes of x, with the adapters added."""
        slots, side, halves = self._slots, self._side, self._halves
        if segments is None or slots is None:
            return multiply(x)
        if side is not None and halves is not None and side.is_open:
            shrunk = side.fork(lambda: halves.shrink(x, segments, slots))
            out = multiply(x)
            side.join()
            halves.expand(out, shrunk, segments, slots)
            return out
        out = multiply(x)
        self._lora_add(out, x, segments, slots)
        return out


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
        self._linear = linear
        self._adapted = Adapted(slots, lora_add, side)

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
        segments: Segments | None,  # None: no row has an adapter
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        return self._adapted(self._linear, x, segments)

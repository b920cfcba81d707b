"""A linear module of the base with the adapters of each row on top."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.linear.quantized_linear import AnyLinear
from kernels.lora.add import LoRAAdd, LoRAInHalves, halves_of
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from workers.engine.model.layers.side_stream import SideStream


@dataclass(frozen=True, slots=True)
class Unexpanded:
    """A module's product whose adapters are still to be expanded into it: by itself, or within a norm."""

    out: Tensor  # [num_rows, out_features], W x + bias
    shrunk: list[Tensor]
    segments: Segments
    module: LoRAModule
    halves: LoRAInHalves
    is_beside: bool  # whether `shrunk` was made on another stream

    def expand(self) -> Tensor:  # [num_rows, out_features]
        """Return the whole product."""
        self.halves.expand(self.out, self.shrunk, self.segments, self.module, is_beside=self.is_beside)
        return self.out

    def expand_norm(self, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add the whole product to the residual stream, in place, and return the stream normed."""
        return self.halves.expand_norm(
            residual,
            self.out,
            self.shrunk,
            self.segments,
            self.module,
            weight,
            eps,
            is_beside=self.is_beside,
        )


Delta = Tensor | Unexpanded
"""What is added to the residual stream, [num_rows, hidden_size]."""


def whole(delta: Delta) -> Tensor:
    """Return it with its adapters expanded."""
    return delta.expand() if isinstance(delta, Unexpanded) else delta


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
        if segments is None or self._slots is None:
            return self._linear(x)
        if self._halves is not None:
            return self._multiply(x, segments, self._slots, self._halves).expand()
        out = self._linear(x)
        self._lora_add(out, x, segments, self._slots)
        return out

    def before_norm(
        self,
        x: Tensor,  # [num_rows, in_features]
        segments: Segments | None,
    ) -> Delta:
        """Multiply, and leave the adapters to the norm that follows if it can expand them."""
        slots, halves = self._slots, self._halves
        if (
            segments is None
            or slots is None
            or halves is None
            or not halves.expands_into_norm(segments, slots)
        ):
            return self(x, segments)
        return self._multiply(x, segments, slots, halves)

    def _multiply(self, x: Tensor, segments: Segments, slots: LoRAModule, halves: LoRAInHalves) -> Unexpanded:
        side = self._side if self._side is not None and self._side.is_open else None
        if side is None:
            out = self._linear(x)
            shrunk = halves.shrink(x, segments, slots, is_beside=False)
        else:
            shrunk = side.fork(lambda: halves.shrink(x, segments, slots, is_beside=True))
            out = self._linear(x)
            side.join()
        return Unexpanded(out, shrunk, segments, slots, halves, is_beside=side is not None)

"""The MLP of a layer: a block of its own, so that a family may have another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from kernels.geglu import geglu
from kernels.segments import Segments
from kernels.swiglu import swiglu
from workers.engine.model.adapted_linear import AdaptedLinear
from workers.engine.model.families.family import Activation, Family

_GATES: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": swiglu, "gelu_pytorch_tanh": geglu}


class MLP(Protocol):
    """What a layer does after attention."""

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual."""
        ...


class GatedMLP:
    """down(activation(gate) * up)."""

    def __init__(self, gate_up: AdaptedLinear, down: AdaptedLinear, activation: Activation) -> None:
        self._gate_up = gate_up
        self._down = down
        self._gate = _GATES[activation]

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual."""
        return self._down(self._gate(self._gate_up(x, segments)), segments)


def build_mlp(family: Family, linears: Mapping[str, AdaptedLinear]) -> MLP:
    """Connect a layer's linear modules as its family's kind of MLP."""
    return GatedMLP(linears["gate_up"], linears["down"], family.activation)

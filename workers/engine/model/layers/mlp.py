"""The MLP of a layer: a block of its own, so that a family may have another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from kernels.geglu import geglu
from kernels.segments import Segments
from kernels.swiglu import swiglu
from workers.engine.model.config import ModelConfig
from workers.engine.model.families.family import Activation
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.expert_linear import ExpertLinear
from workers.engine.model.layers.sparse_mlp import SparseMLP

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


def build_mlp(
    config: ModelConfig,
    layer: int,
    linears: Mapping[str, AdaptedLinear],
    experts: Mapping[str, ExpertLinear],
) -> MLP:
    """Connect a layer's linear modules as its family's kind of MLP."""
    chosen_from = config.experts_of(layer)
    if chosen_from is None:
        return GatedMLP(linears["gate_up"], linears["down"], config.family.activation)
    return SparseMLP(chosen_from, linears["router"], experts["gate_up"], experts["down"])

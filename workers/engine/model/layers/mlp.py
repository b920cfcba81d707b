"""The MLP of a layer: a block of its own, so that a family may have another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from kernels.activations.swiglu import Gate
from kernels.lora.segments import Segments
from kernels.registry import Kernels
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear, Delta
from workers.engine.model.layers.expert_linear import ExpertLinear
from workers.engine.model.layers.sparse_mlp import SparseMLP


class MLP(Protocol):
    """What a layer does after attention."""

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
        sequence_rows: Tensor | None = None,  # [num_seqs, 3] int32, as the step has them
    ) -> Delta:
        """Return what is added to the residual; for rows behind those of all sequences it may be anything."""
        ...


class GatedMLP:
    """down(activation(gate) * up)."""

    def __init__(self, gate_up: AdaptedLinear, down: AdaptedLinear, gate: Gate) -> None:
        self._gate_up = gate_up
        self._down = down
        self._gate = gate

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
        sequence_rows: Tensor | None = None,
    ) -> Delta:
        """Return what is added to the residual."""
        del sequence_rows
        return self._down.before_norm(self._gate(self._gate_up(x, segments)), segments)


def build_mlp(
    config: ModelConfig,
    layer: int,
    linears: Mapping[str, AdaptedLinear],
    experts: Mapping[str, ExpertLinear],
    kernels: Kernels,
) -> MLP:
    """Connect a layer's linear modules as its family's kind of MLP."""
    chosen_from = config.experts_of(layer)
    if chosen_from is None:
        gate = {"silu": kernels.swiglu, "gelu_pytorch_tanh": kernels.geglu}[config.family.activation]
        return GatedMLP(linears["gate_up"], linears["down"], gate)
    return SparseMLP(chosen_from, linears["router"], experts["gate_up"], experts["down"], kernels)

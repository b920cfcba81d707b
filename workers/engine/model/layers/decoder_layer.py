"""What the decoder asks of a layer, the parts that layers are made of, and the block of most families.

A family with another block implements `DecoderLayer` in a file of its own, named in `layer_builders.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.registry import Kernels
from workers.engine.core.step_input import ForwardInput
from workers.engine.model.comm import Comm
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear, Delta, Unexpanded, whole
from workers.engine.model.layers.attention import Attention
from workers.engine.model.layers.attention_backend import AttentionBackend
from workers.engine.model.layers.expert_linear import ExpertLinear
from workers.engine.model.layers.mlp import MLP, build_mlp
from workers.engine.model.layers.ops import Rotation
from workers.engine.model.weights import LayerWeights


class DecoderLayer(Protocol):
    """One layer of a decoder."""

    def __call__(
        self,
        residual: Tensor,  # [num_tokens, hidden_size], changed in place
        delta: Delta | None,  # what the layer before adds; None in the first
        rotations: Sequence[Rotation],  # one for each of the model's rotary tables
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],  # this layer's keys and values
    ) -> Delta:
        """Add `delta` to `residual`; return what this layer adds in its turn."""
        ...


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer is built of: its weights with the adapters upon them, and the model's kernels."""

    config: ModelConfig
    index: int
    rotary: int  # which of the rotations is this layer's
    weights: LayerWeights
    linears: Mapping[str, AdaptedLinear]  # by PackedLinear.name
    experts: Mapping[str, ExpertLinear]  # likewise; empty in dense layers
    kernels: Kernels
    backend: AttentionBackend
    comm: Comm  # sums what several ranks have computed

    def attention(self) -> Attention:
        """Connect the layer's attention."""
        norm = self.kernels.add_rms_norm
        return Attention(self.config, self.index, self.weights, self.linears, self.backend, norm)

    def mlp(self) -> MLP:
        """Connect the layer's MLP, dense or with experts."""
        return build_mlp(self.config, self.index, self.linears, self.experts, self.kernels)


class SequentialLayer:
    """x + attention(norm(x)), then y + mlp(norm(y)); some families norm or scale what is added."""

    def __init__(self, parts: LayerParts) -> None:
        assert parts.weights.pre_attention_norm is not None, "this block has a norm before its attention"
        assert parts.weights.pre_mlp_norm is not None, "this block has a norm before its MLP"
        self._weights = parts.weights
        self._pre_attention_norm = parts.weights.pre_attention_norm
        self._pre_mlp_norm = parts.weights.pre_mlp_norm
        self._attention = parts.attention()
        self._mlp = parts.mlp()
        self._rotary = parts.rotary
        self._add_rms_norm = parts.kernels.add_rms_norm
        self._eps = parts.config.rms_norm_eps
        self._comm = parts.comm
        self._multiplier = parts.config.residual_multiplier

    def __call__(
        self,
        residual: Tensor,
        delta: Delta | None,
        rotations: Sequence[Rotation],
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],
    ) -> Delta:
        """Add `delta` to `residual`; return what this layer adds in its turn."""
        weights = self._weights
        normed = self._norm(residual, delta, self._pre_attention_norm)
        delta = self._summed(self._attention(normed, rotations[self._rotary], step, kv))
        if weights.post_attention_norm is not None:
            delta = self._norm(whole(delta), None, weights.post_attention_norm)
        normed = self._norm(residual, self._scaled(delta), self._pre_mlp_norm)
        delta = self._summed(self._mlp(normed, step.segments, step.sequence_rows))
        if weights.post_mlp_norm is not None:
            delta = self._norm(whole(delta), None, weights.post_mlp_norm)
        return self._scaled(delta)

    def _scaled(self, delta: Delta) -> Delta:
        return delta if self._multiplier is None else whole(delta).mul_(self._multiplier)

    def _norm(self, residual: Tensor, delta: Delta | None, weight: Tensor) -> Tensor:
        if isinstance(delta, Unexpanded):
            return delta.expand_norm(residual, weight, self._eps)
        return self._add_rms_norm(residual, delta, weight, self._eps)

    def _summed(self, delta: Delta) -> Delta:
        """Return the sum over all ranks, each of which has expanded its part; alone, whatever there is."""
        return delta if self._comm.is_alone else self._comm.add(whole(delta))

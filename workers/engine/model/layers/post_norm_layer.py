"""The block of OLMo 2 and 3: what attention and MLP add is normed, what they are given is not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workers.engine.core.step_input import ForwardInput
from workers.engine.model.layers.adapted_linear import Delta, whole
from workers.engine.model.layers.decoder_layer import LayerParts
from workers.engine.model.layers.ops import Rotation


class PostNormLayer:
    """x + norm(attention(x)), then y + norm(mlp(y))."""

    def __init__(self, parts: LayerParts) -> None:
        weights = parts.weights
        assert weights.post_attention_norm is not None, "this block has a norm after its attention"
        assert weights.post_mlp_norm is not None, "this block has a norm after its MLP"
        self._post_attention_norm = weights.post_attention_norm
        self._post_mlp_norm = weights.post_mlp_norm
        self._attention = parts.attention()
        self._mlp = parts.mlp()
        self._rotary = parts.rotary
        self._norm = parts.kernels.add_rms_norm
        self._eps = parts.config.rms_norm_eps
        self._comm = parts.comm

    def __call__(
        self,
        residual: Tensor,
        delta: Delta | None,
        rotations: Sequence[Rotation],
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Add `delta` to `residual`; return what this layer adds in its turn."""
        if delta is not None:
            residual.add_(whole(delta))
        attended = self._comm.add(whole(self._attention(residual, rotations[self._rotary], step, kv)))
        residual.add_(self._norm(attended, None, self._post_attention_norm, self._eps))
        answer = self._comm.add(whole(self._mlp(residual, step.segments)))
        return self._norm(answer, None, self._post_mlp_norm, self._eps)

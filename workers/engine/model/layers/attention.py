"""The attention of a layer: project, attend over the cache, project back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from workers.engine.core.step_input import ForwardInput
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear, Delta
from workers.engine.model.layers.attention_backend import AttentionBackend, HeadLayout
from workers.engine.model.layers.ops import Rotation
from workers.engine.model.weights import LayerWeights


class Attention:
    """Grouped-query attention of one layer."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        weights: LayerWeights,
        linears: Mapping[str, AdaptedLinear],
        backend: AttentionBackend,
    ) -> None:
        self._qkv = linears["qkv"]
        self._o = linears["o"]
        self._attend = backend
        window = config.layers[index].window
        norms: HeadNorms | None = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = HeadNorms(weights.q_norm, weights.k_norm, config.rms_norm_eps)
        self._heads = HeadLayout(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.attention_scale,
            softcap=config.attn_logit_softcapping,
            window=window,
            mask=config.windows.index(window),
            norms=norms,
        )

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],  # this layer's keys and values
    ) -> Delta:
        """Return what is added to the residual."""
        attended = self._attend(self._qkv(x, step.segments), rotation, step, kv, self._heads)
        return self._o.before_norm(attended, step.segments)

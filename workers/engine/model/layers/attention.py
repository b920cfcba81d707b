"""The attention of a layer: project, attend over the cache, project back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from kernels.norms.add_rms_norm import AddRMSNorm
from workers.engine.core.step_input import ForwardInput
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear
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
        add_rms_norm: AddRMSNorm,
    ) -> None:
        self._qkv = linears["qkv"]
        self._o = linears["o"]
        self._attend = backend
        window = config.layers[index].window
        norms: HeadNorms | None = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = HeadNorms(weights.q_norm, weights.k_norm, config.rms_norm_eps)
        spans_heads = config.family.qk_norm_spans_heads
        self._add_rms_norm = add_rms_norm
        self._projection_norms = norms if spans_heads else None
        self._paired = config.layers[index].rope.rotary_dim if config.family.rotates_pairs else 0
        self._heads = HeadLayout(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.attention_scale,
            softcap=config.attn_logit_softcapping,
            window=window,
            mask=config.windows.index(window),
            norms=None if spans_heads else norms,
        )

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],  # this layer's keys and values
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual."""
        qkv = self._qkv(x, step.segments)
        if self._projection_norms is not None:
            self._norm_projections(qkv, self._projection_norms)
        if self._paired:
            self._part_pairs(qkv)
        return self._o(self._attend(qkv, rotation, step, kv, self._heads), step.segments)

    def _norm_projections(self, qkv: Tensor, norms: HeadNorms) -> None:
        """Norm each row's queries, and its keys, over all their heads; in place."""
        for start, weight in ((0, norms.q), (norms.q.shape[0], norms.k)):
            part = qkv.narrow(1, start, weight.shape[0])
            part.copy_(self._add_rms_norm(part.contiguous(), None, weight, norms.eps))

    def _part_pairs(self, qkv: Tensor) -> None:
        """Move each rotated pair's second column to the second half, where kernels seek it; in place.

        Queries and keys are moved alike, so that their products are the same.
        """
        heads = self._heads
        both = qkv.narrow(1, 0, (heads.num_heads + heads.num_kv_heads) * heads.head_dim)
        rotated = both.unflatten(1, (-1, heads.head_dim)).narrow(2, 0, self._paired)
        rotated.copy_(rotated.unflatten(2, (-1, 2)).transpose(2, 3).flatten(2))

"""The attention of a layer: project, attend over the cache, project back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from kernels.norms.add_rms_norm import AddRMSNorm
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
        rotary_dim = config.layers[index].rope.rotary_dim
        self._paired_columns = rotary_dim if config.family.rotates_pairs else 0
        self._heads = HeadLayout(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.attention_scale,
            softcap=config.attn_logit_softcapping,
            window=window,
            mask=config.windows.index(window),
            norms=None if spans_heads else norms,
            sinks=weights.sinks,
        )

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],  # this layer's keys and values
    ) -> Delta:
        """Return what is added to the residual."""
        qkv = self._qkv(x, step.segments)
        if self._projection_norms is not None:
            self._norm_projections(qkv, self._projection_norms)
        if self._paired_columns:
            self._part_pairs(qkv)
        attended = self._attend(qkv, rotation, step, kv, self._heads)
        return self._o.before_norm(attended, step.segments)

    def _norm_projections(
        self,
        qkv: Tensor,  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], changed in place
        norms: HeadNorms,  # as wide as all query heads, and as all key heads
    ) -> None:
        """Norm each row's queries, and its keys, over all their heads."""
        for start, weight in ((0, norms.q), (norms.q.shape[0], norms.k)):
            part = qkv.narrow(1, start, weight.shape[0])
            part.copy_(self._add_rms_norm(part.contiguous(), None, weight, norms.eps))

    def _part_pairs(
        self,
        qkv: Tensor,  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], changed in place
    ) -> None:
        """Move each rotated pair's columns to the two halves in which kernels look for them.

        Queries and keys are moved alike, so that their products stay what they are.
        """
        num_tokens, head_dim = len(qkv), self._heads.head_dim
        num_moved = self._heads.num_heads + self._heads.num_kv_heads
        heads = qkv.narrow(1, 0, num_moved * head_dim).view(num_tokens, num_moved, head_dim)
        rotated = heads.narrow(2, 0, self._paired_columns)
        pairs = rotated.view(num_tokens, num_moved, self._paired_columns // 2, 2)
        rotated.copy_(pairs.transpose(2, 3).flatten(2))

"""The attention of a layer: project, norm and rotate, keep keys and values, attend, project back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kernels.attention.paged_attention import HeadNorms
from kernels.registry import Kernels
from workers.engine.core.step_input import StepInput
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.gathered_attention import gathered_attention, store_kv
from workers.engine.model.layers.ops import Rotation, rotate
from workers.engine.model.weights import LayerWeights


class Attention:
    """Grouped-query attention of one layer, over the cache in place or gathered as the step was built."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        weights: LayerWeights,
        linears: Mapping[str, AdaptedLinear],
        kernels: Kernels,
    ) -> None:
        self._paged_attention = kernels.paged_attention
        self._add_rms_norm = kernels.add_rms_norm
        self._qkv = linears["qkv"]
        self._o = linears["o"]
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._scale = config.attention_scale
        self._softcap = config.attn_logit_softcapping
        self._window = config.layers[index].window
        self._mask = config.windows.index(self._window)
        self._head_norms: HeadNorms | None = None
        if weights.q_norm is not None and weights.k_norm is not None:
            self._head_norms = HeadNorms(weights.q_norm, weights.k_norm, config.rms_norm_eps)

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        rotation: Rotation,
        step: StepInput,
        kv: tuple[Tensor, Tensor],  # this layer's keys and values
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual."""
        qkv = self._qkv(x, step.segments)
        attend = self._attend_gathered if step.groups else self._attend_in_place
        return self._o(attend(qkv, rotation, step, *kv), step.segments)

    def _attend_in_place(
        self, qkv: Tensor, rotation: Rotation, step: StepInput, keys: Tensor, values: Tensor
    ) -> Tensor:
        assert self._paged_attention is not None, "a step without groups where nothing reads blocks in place"
        return self._paged_attention(
            qkv,
            keys,
            values,
            rotation.cos,
            rotation.sin,
            step.spans,
            step.block_tables,
            self._scale,
            window=self._window,
            softcap=self._softcap,
            head_norms=self._head_norms,
        )

    def _attend_gathered(
        self, qkv: Tensor, rotation: Rotation, step: StepInput, keys: Tensor, values: Tensor
    ) -> Tensor:
        rows = qkv.view(step.num_tokens, -1, self._head_dim)
        q, k, v = rows.split((self._num_heads, self._num_kv_heads, self._num_kv_heads), dim=1)
        if (norms := self._head_norms) is not None:
            q = self._add_rms_norm(q.reshape(-1, self._head_dim), None, norms.q, norms.eps).view(q.shape)
            k = self._add_rms_norm(k.reshape(-1, self._head_dim), None, norms.k, norms.eps).view(k.shape)
        store_kv(rotate(k, rotation), keys, step.write_rows)
        store_kv(v, values, step.write_rows)
        return gathered_attention(
            rotate(q, rotation),
            keys,
            values,
            step.groups,
            mask=self._mask,
            scale=self._scale,
            softcap=self._softcap,
        )

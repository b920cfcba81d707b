"""The Llama-family decoder: one mixed forward pass over base rows and adapter rows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.lora import add_lora
from kernels.lora_slots import PackedModuleSlots
from workers.engine.kv_cache import KVCache
from workers.engine.lora.packed_slots import PackedModule
from workers.engine.model.attention import paged_attention, store_kv
from workers.engine.model.config import ModelConfig
from workers.engine.model.ops import RotaryTable, rms_norm, rotate, swiglu
from workers.engine.model.weights import DecoderWeights, LayerWeights
from workers.engine.step_input import StepInput


class AdapterWeights(Protocol):
    """Where the forward pass finds the LoRA matrices of the resident adapters."""

    def packed(self, layer: int, module: PackedModule) -> PackedModuleSlots:
        """Return every slot's matrices for one packed module of one layer."""
        ...


class Decoder:
    """Computes logits for a step's sampled rows, keeping keys and values in the cache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        max_model_len: int,
        adapters: AdapterWeights | None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._adapters = adapters
        self._rotary = RotaryTable(
            head_dim=config.head_dim,
            theta=config.rope_theta,
            max_positions=max_model_len,
            dtype=weights.embedding.dtype,
        )

    def forward(self, step: StepInput, cache: KVCache) -> Tensor:  # [num_sampled_rows, vocab_size] float32
        """Run one step and return the logits of `step.sampling.rows`, none when nothing is sampled."""
        hidden = self._weights.embedding[step.token_ids]
        cos, sin = self._rotary.rows(step.positions)
        for index, layer in enumerate(self._weights.layers):
            hidden = hidden + self._attention(index, layer, hidden, cos, sin, step, cache)
            hidden = hidden + self._mlp(index, layer, hidden, step)
        return self._head(hidden, step)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,
        sin: Tensor,
        step: StepInput,
        cache: KVCache,
    ) -> Tensor:
        config = self._config
        num_rotated = config.num_heads + config.num_kv_heads
        normed = rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
        qkv = self._linear(index, "qkv", layer.qkv, normed, step)
        qkv = qkv.view(step.num_tokens, num_rotated + config.num_kv_heads, config.head_dim)
        qk = rotate(qkv[:, :num_rotated], cos, sin)
        keys, values = cache.layers[index]
        store_kv(qk[:, config.num_heads :], keys, step.write_rows)
        store_kv(qkv[:, num_rotated:], values, step.write_rows)
        attended = paged_attention(qk[:, : config.num_heads], keys, values, step.groups)
        return self._linear(index, "o", layer.o, attended, step)

    def _mlp(self, index: int, layer: LayerWeights, hidden: Tensor, step: StepInput) -> Tensor:
        normed = rms_norm(hidden, layer.post_attention_norm, self._config.rms_norm_eps)
        gated = swiglu(self._linear(index, "gate_up", layer.gate_up, normed, step))
        return self._linear(index, "down", layer.down, gated, step)

    def _linear(self, index: int, module: PackedModule, weight: Tensor, x: Tensor, step: StepInput) -> Tensor:
        out = F.linear(x, weight)
        if step.segments is not None and self._adapters is not None:
            add_lora(out, x, step.segments, self._adapters.packed(index, module))
        return out

    def _head(self, hidden: Tensor, step: StepInput) -> Tensor:
        if step.sampling is None:
            return torch.empty((0, self._config.vocab_size))
        sampled = hidden.index_select(0, step.sampling.rows)
        normed = rms_norm(sampled, self._weights.final_norm, self._config.rms_norm_eps)
        return F.linear(normed.float(), self._weights.head)[: step.sampling.num_rows]

"""The Llama-family decoder: one mixed forward pass over base rows and adapter rows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.add_rms_norm import add_rms_norm
from kernels.linear import Linear
from kernels.lora import add_lora
from kernels.lora_slots import PackedModuleSlots
from kernels.paged_attention import paged_attention
from kernels.swiglu import swiglu
from workers.engine.kv_cache import KVCache
from workers.engine.lora.packed_slots import PackedModule
from workers.engine.model.attention import gathered_attention, store_kv
from workers.engine.model.config import ModelConfig
from workers.engine.model.ops import RotaryTable, rotate
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
        residual = self._weights.embedding[step.token_ids]
        cos, sin = self._rotary.rows(step.positions)
        delta: Tensor | None = None
        eps = self._config.rms_norm_eps
        for index, layer in enumerate(self._weights.layers):
            normed = add_rms_norm(residual, delta, layer.input_norm, eps)
            delta = self._attention(index, layer, normed, cos, sin, step, cache)
            normed = add_rms_norm(residual, delta, layer.post_attention_norm, eps)
            delta = self._mlp(index, layer, normed, step)
        return self._head(residual, delta, step)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        normed: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, head_dim]
        sin: Tensor,  # [num_tokens, head_dim]
        step: StepInput,
        cache: KVCache,
    ) -> Tensor:
        qkv = self._linear(index, "qkv", layer.qkv, normed, step)
        keys, values = cache.layers[index]
        if step.groups:
            attended = self._attend_gathered(qkv, keys, values, cos, sin, step)
        else:
            scale = self._config.head_dim**-0.5
            attended = paged_attention(qkv, keys, values, cos, sin, step.spans, step.block_tables, scale)
        return self._linear(index, "o", layer.o, attended, step)

    def _attend_gathered(
        self, qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, step: StepInput
    ) -> Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        num_rotated = num_heads + num_kv_heads
        qkv = qkv.view(step.num_tokens, num_rotated + num_kv_heads, self._config.head_dim)
        qk = rotate(qkv[:, :num_rotated], cos.unsqueeze(1), sin.unsqueeze(1))
        store_kv(qk[:, num_heads:], keys, step.write_rows)
        store_kv(qkv[:, num_rotated:], values, step.write_rows)
        return gathered_attention(qk[:, :num_heads], keys, values, step.groups)

    def _mlp(self, index: int, layer: LayerWeights, normed: Tensor, step: StepInput) -> Tensor:
        gated = swiglu(self._linear(index, "gate_up", layer.gate_up, normed, step))
        return self._linear(index, "down", layer.down, gated, step)

    def _linear(self, index: int, module: PackedModule, linear: Linear, x: Tensor, step: StepInput) -> Tensor:
        out = linear(x)
        if step.segments is not None and self._adapters is not None:
            add_lora(out, x, step.segments, self._adapters.packed(index, module))
        return out

    def _head(self, residual: Tensor, delta: Tensor | None, step: StepInput) -> Tensor:
        sampling = step.sampling
        if sampling is None:
            return torch.empty((0, self._config.vocab_size))
        residual = residual.index_select(0, sampling.rows)
        delta = None if delta is None else delta.index_select(0, sampling.rows)
        normed = add_rms_norm(residual, delta, self._weights.final_norm, self._config.rms_norm_eps)
        return self._weights.head(normed)[: sampling.num_rows]

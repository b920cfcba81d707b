"""The decoder's weights, packed as the forward pass uses them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.linear import Linear
from kernels.logits import Head
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; q, k, v and gate, up are stacked so that each pair of matrices is one product."""

    input_norm: Tensor  # [hidden_size]
    qkv: Linear  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]
    o: Linear  # [hidden_size, num_heads * head_dim]
    post_attention_norm: Tensor  # [hidden_size]
    gate_up: Linear  # [2 * intermediate_size, hidden_size]
    down: Linear  # [hidden_size, intermediate_size]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything a Llama-family decoder multiplies with."""

    embedding: Tensor  # [vocab_size, hidden_size]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden_size]
    head: Head  # [vocab_size, hidden_size]


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return [out_features, in_features] of every linear module of a layer, by its name below the layer."""
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (q_size, config.hidden_size),
        "self_attn.k_proj": (kv_size, config.hidden_size),
        "self_attn.v_proj": (kv_size, config.hidden_size),
        "self_attn.o_proj": (config.hidden_size, q_size),
        "mlp.gate_proj": (config.intermediate_size, config.hidden_size),
        "mlp.up_proj": (config.intermediate_size, config.hidden_size),
        "mlp.down_proj": (config.hidden_size, config.intermediate_size),
    }


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> DecoderWeights:
    """Read the checkpoint; every tensor it holds is used or refused."""
    with CheckpointReader(folder, dtype) as reader:
        hidden, vocab = config.hidden_size, config.vocab_size
        embedding = reader.read("model.embed_tokens.weight", (vocab, hidden))
        layers = tuple(_load_layer(reader, config, index) for index in range(config.num_layers))
        final_norm = reader.read("model.norm.weight", (hidden,))
        head = _load_head(reader, config, embedding)
        reader.require_all_read()
    return DecoderWeights(embedding, layers, final_norm, head)


def _load_layer(reader: CheckpointReader, config: ModelConfig, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    linear = {
        name.rpartition(".")[2]: reader.read(f"{prefix}.{name}.weight", shape)
        for name, shape in linear_shapes(config).items()
    }
    return LayerWeights(
        input_norm=reader.read(f"{prefix}.input_layernorm.weight", (config.hidden_size,)),
        qkv=Linear(torch.cat([linear["q_proj"], linear["k_proj"], linear["v_proj"]])),
        o=Linear(linear["o_proj"]),
        post_attention_norm=reader.read(f"{prefix}.post_attention_layernorm.weight", (config.hidden_size,)),
        gate_up=Linear(torch.cat([linear["gate_proj"], linear["up_proj"]])),
        down=Linear(linear["down_proj"]),
    )


def _load_head(reader: CheckpointReader, config: ModelConfig, embedding: Tensor) -> Head:
    if config.tie_word_embeddings:
        reader.ignore("lm_head.weight")
        return Head(embedding)
    return Head(reader.read("lm_head.weight", (config.vocab_size, config.hidden_size)))

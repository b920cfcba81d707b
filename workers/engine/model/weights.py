"""The decoder's weights, packed as the forward pass uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.linear import Linear
from kernels.logits import Head
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.config import ModelConfig
from workers.engine.model.layout import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    layer_modules,
    layer_norms,
    layer_path,
)
from workers.engine.model.modules import PackedLinear


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer's matrices by the names of its packed modules, and its norms in float32."""

    linears: Mapping[str, Linear]  # by PackedLinear.name
    experts: Mapping[str, tuple[Linear, ...]]  # likewise, one of each expert; empty in dense layers
    pre_attention_norm: Tensor  # [hidden_size]
    pre_mlp_norm: Tensor  # [hidden_size]
    post_attention_norm: Tensor | None = None  # [hidden_size]
    post_mlp_norm: Tensor | None = None  # [hidden_size]
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None  # [head_dim]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything a decoder multiplies with."""

    embedding: Tensor  # [vocab_size, hidden_size]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden_size] float32
    head: Head  # [vocab_size, hidden_size]

    def linear(self, layer: int, module: str, expert: int | None) -> Linear:
        """Return the weight of one packed module, of one expert where a layer has several."""
        weights = self.layers[layer]
        return weights.linears[module] if expert is None else weights.experts[module][expert]


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> DecoderWeights:
    """Read the checkpoint; every tensor it holds is used or refused."""
    with CheckpointReader(folder, dtype) as reader:
        hidden, vocab = config.hidden_size, config.vocab_size
        embedding = reader.read(EMBEDDING, (vocab, hidden))
        layers = tuple(_load_layer(reader, config, index) for index in range(config.num_layers))
        final_norm = _load_norm(reader, FINAL_NORM, hidden, config)
        head = _load_head(reader, config, embedding)
        reader.require_all_read()
    return DecoderWeights(embedding, layers, final_norm, head)


def _load_layer(reader: CheckpointReader, config: ModelConfig, index: int) -> LayerWeights:
    prefix, modules = layer_path(index), layer_modules(config, index)
    norms = {
        field: _load_norm(reader, f"{prefix}.{name}", width, config)
        for field, (name, width) in layer_norms(config).items()
    }
    linears = {
        packed.name: _load_linear(reader, prefix, packed) for packed in modules if packed.expert is None
    }
    return LayerWeights(linears, _load_experts(reader, prefix, modules), **norms)


def _load_linear(reader: CheckpointReader, prefix: str, packed: PackedLinear) -> Linear:
    weights = [
        reader.read(f"{prefix}.{part.path}.weight", (part.out_features, part.in_features))
        for part in packed.parts
    ]
    biases = [
        reader.read(f"{prefix}.{part.path}.bias", (part.out_features,))
        for part in packed.parts
        if part.has_bias
    ]
    return Linear(_stacked(weights), _stacked(biases) if biases else None)


def _load_experts(
    reader: CheckpointReader, prefix: str, modules: tuple[PackedLinear, ...]
) -> dict[str, tuple[Linear, ...]]:
    experts: dict[str, tuple[Linear, ...]] = {}
    for packed in modules:
        if packed.expert is not None:
            linear = _load_linear(reader, prefix, packed)
            experts[packed.name] = (*experts.get(packed.name, ()), linear)
    return experts


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _load_norm(reader: CheckpointReader, name: str, width: int, config: ModelConfig) -> Tensor:
    # In float32 whatever the model is in: 1 + weight would lose the weight's last bits in bfloat16.
    return reader.read(f"{name}.weight", (width,)).float() + config.family.norm_offset


def _load_head(reader: CheckpointReader, config: ModelConfig, embedding: Tensor) -> Head:
    if config.tie_word_embeddings:
        reader.ignore(HEAD)
        return Head(embedding)
    return Head(reader.read(HEAD, (config.vocab_size, config.hidden_size)))

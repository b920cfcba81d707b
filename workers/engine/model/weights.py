"""The decoder's weights, packed as the forward pass uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.experts.grouped_linear import StackedLinear
from kernels.linear.linear import Linear
from kernels.linear.logits import Head
from kernels.linear.quantized_linear import AnyLinear
from kernels.registry import Kernels, build
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.config import ModelConfig
from workers.engine.model.layout import layer_modules, layer_norms, layer_path, tied_name
from workers.engine.model.linears import LinearLoader
from workers.engine.model.modules import EMBEDDING, FINAL_NORM, HEAD, SINKS, PackedLinear
from workers.engine.model.quantization import Quantize
from workers.engine.model.random_weights import RandomCodes, RandomWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer's matrices by the names of its packed modules, and its norms in float32."""

    linears: Mapping[str, AnyLinear]  # by PackedLinear.name
    experts: Mapping[str, tuple[AnyLinear, ...] | StackedLinear]  # likewise; empty in dense layers
    pre_attention_norm: Tensor | None = None  # [hidden_size]; None, as the next, if the block has none there
    pre_mlp_norm: Tensor | None = None  # [hidden_size]
    post_attention_norm: Tensor | None = None  # [hidden_size]
    post_mlp_norm: Tensor | None = None  # [hidden_size]
    q_norm: Tensor | None = None  # [head_dim], or [num_heads * head_dim] if it spans heads
    k_norm: Tensor | None = None  # [head_dim], or [num_kv_heads * head_dim]
    sinks: Tensor | None = None  # [num_heads] float32; None, if softmaxes have none


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything a decoder multiplies with."""

    embedding: Tensor  # [vocab_size, hidden_size]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden_size] float32
    head: Head  # [vocab_size, hidden_size]
    kernels: Kernels  # that its modules were laid out for

    def linear(self, layer: int, module: str, expert: int | None) -> AnyLinear:
        """Return the weight of one packed module, of one expert if a layer has several."""
        weights = self.layers[layer]
        return weights.linears[module] if expert is None else weights.experts[module][expert]

    @property
    def linear_bytes(self) -> int:
        """Bytes that the layers' linear modules hold, those of experts included."""
        layers = (layer.linears.values() for layer in self.layers)
        experts = (members for layer in self.layers for members in layer.experts.values())
        return sum(linear.nbytes for linears in (*layers, *experts) for linear in linears)


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    in_flight: Quantize | None = None,
    keep_quantized: bool = True,
    kernels: Kernels | None = None,
    device: torch.device | str = "cpu",
) -> DecoderWeights:
    """Read the checkpoint onto a device; every tensor it holds is used or refused.

    `in_flight` quantises the linear modules of a plain checkpoint; `keep_quantized` is whether quantised ones
    stay so, or are dequantised into `dtype`. Without `kernels` they are the best of this machine's CPU.
    """
    kernels = kernels or build("cpu", dtype)
    with CheckpointReader(folder, dtype, device) as reader:
        linears = LinearLoader(reader, dtype, device, config.quantization, in_flight, keep_quantized, kernels)
        return _load(reader, linears, config)


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    codes: RandomCodes | None = None,
    keep_quantized: bool = True,
    kernels: Kernels,
    device: torch.device | str = "cpu",
) -> DecoderWeights:
    """Make weights of a checkpoint's geometry without reading any; with `codes`, linear modules quantised."""
    reader = RandomWeights(dtype, device, codes=codes)
    linears = LinearLoader(reader, dtype, device, config.quantization, None, keep_quantized, kernels)
    return _load(reader, linears, config)


def _load(
    reader: CheckpointReader | RandomWeights, linears: LinearLoader, config: ModelConfig
) -> DecoderWeights:
    hidden, vocab = config.hidden_size, config.vocab_size
    name = tied_name(reader.has) if config.tie_word_embeddings else EMBEDDING
    embedding = reader.read(name, (vocab, hidden))
    layers = tuple(_load_layer(reader, linears, config, index) for index in range(config.num_layers))
    final_norm = _load_norm(reader, FINAL_NORM, hidden, config)
    head = Head(_load_head(reader, config, embedding), linears.kernels.logits)
    reader.require_all_read()
    return DecoderWeights(embedding, layers, final_norm, head, linears.kernels)


def _load_layer(
    reader: CheckpointReader | RandomWeights, linears: LinearLoader, config: ModelConfig, index: int
) -> LayerWeights:
    prefix, modules = layer_path(index), layer_modules(config, index)
    norms = {
        field: _load_norm(reader, f"{prefix}.{name}", width, config)
        for field, (name, width) in layer_norms(config).items()
    }
    dense = {packed.name: linears.load(prefix, packed) for packed in modules if packed.expert is None}
    sinks: Tensor | None = None
    if config.family.has_sinks:
        sinks = reader.read(f"{prefix}.{SINKS}", (config.num_heads,)).float()
    return LayerWeights(dense, _load_experts(linears, prefix, modules), **norms, sinks=sinks)


def _load_experts(
    linears: LinearLoader, prefix: str, modules: tuple[PackedLinear, ...]
) -> Mapping[str, tuple[AnyLinear, ...] | StackedLinear]:
    loaded = ((packed, linears.load(prefix, packed)) for packed in modules if packed.expert is not None)
    multiply = linears.kernels.grouped_linear
    if multiply is None:
        experts: dict[str, tuple[AnyLinear, ...]] = {}
        for packed, linear in loaded:
            experts[packed.name] = (*experts.get(packed.name, ()), linear)
        return experts
    stacks: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for packed, linear in loaded:  # one at a time: no two copies of more than one lie in memory
        assert isinstance(linear, Linear), "a device's experts are dequantised as they are read"
        _put(linear.dense(), stacks, packed)
        if linear.bias is not None:
            _put(linear.bias, biases, packed)
    kernel = linears.kernels.linear
    return {
        name: StackedLinear(stack, biases.get(name), kernel=kernel, multiply=multiply)
        for name, stack in stacks.items()
    }


def _put(part: Tensor, stacks: dict[str, Tensor], packed: PackedLinear) -> None:
    if packed.name not in stacks:
        stacks[packed.name] = part.new_empty((packed.num_experts, *part.shape))
    stacks[packed.name][packed.expert].copy_(part)


def _load_norm(
    reader: CheckpointReader | RandomWeights, name: str, width: int, config: ModelConfig
) -> Tensor:
    # In float32 whatever the model is in: 1 + weight would lose the weight's last bits in bfloat16.
    return reader.read(f"{name}.weight", (width,)).float() + config.family.norm_offset


def _load_head(reader: CheckpointReader | RandomWeights, config: ModelConfig, embedding: Tensor) -> Tensor:
    if config.tie_word_embeddings:
        reader.ignore(HEAD)
        return embedding
    if isinstance(reader, CheckpointReader) and not reader.has(HEAD):
        raise CheckpointError(
            f"{reader.place(HEAD)} is missing, and tie_word_embeddings is false, so that transformers would "
            "make up a head; set it to true in config.json if the embedding is the head, or download the "
            "checkpoint again"
        )
    return reader.read(HEAD, (config.vocab_size, config.hidden_size))

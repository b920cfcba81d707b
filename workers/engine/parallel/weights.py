"""One rank's share of a model's weights."""

from __future__ import annotations

from dataclasses import replace

from kernels.linear.linear import Linear
from kernels.linear.logits import Head
from kernels.linear.quantized_linear import AnyLinear, QuantizedLinear
from workers.engine.core.errors import ConfigError
from workers.engine.model.config import ModelConfig
from workers.engine.model.layout import layer_modules
from workers.engine.model.modules import PackedLinear
from workers.engine.model.weights import DecoderWeights, LayerWeights
from workers.engine.parallel.shard import Shard


def cut_config(config: ModelConfig, shard: Shard) -> ModelConfig:
    """Return the config of one rank's decoder: whole heads, fewer of them; ConfigError if that cannot be."""
    if config.family.qk_norm_spans_heads and shard.tp_size > 1:
        raise ConfigError(
            f"{config.architecture} norms queries and keys over all heads, which no rank of "
            f"{shard.tp_size} has; give it one rank"
        )
    heads = {
        "num_heads": shard.of(config.num_heads, "query heads"),
        "num_kv_heads": shard.of(config.num_kv_heads, "key heads"),
    }
    return config.model_copy(update=heads)


def cut_weights(weights: DecoderWeights, config: ModelConfig, shard: Shard) -> DecoderWeights:
    """Cut every matrix along the axis that its module names; norms stay whole."""
    vocabulary = (config.vocab_size,)
    layers = tuple(_cut_layer(layer, config, index, shard) for index, layer in enumerate(weights.layers))
    return replace(
        weights,
        embedding=shard.cut(weights.embedding, 0, vocabulary, "tokens"),
        layers=layers,
        head=Head(shard.cut(weights.head.weight, 0, vocabulary, "tokens"), weights.kernels.logits),
    )


def section_widths(packed: PackedLinear) -> list[int]:
    """Return the output widths of the matrices in a packed module, those that the file holds fused too."""
    return [width for part in packed.parts for width in part.sections or (part.out_features,)]


def _cut_layer(layer: LayerWeights, config: ModelConfig, index: int, shard: Shard) -> LayerWeights:
    modules = layer_modules(config, index)
    single = {packed.name: packed for packed in modules if packed.expert is None}
    experts = {packed.name: packed for packed in modules if packed.expert is not None}
    heads = (config.num_heads,)
    return replace(
        layer,
        sinks=None if layer.sinks is None else shard.cut(layer.sinks, 0, heads, "query heads"),
        linears={name: _cut_linear(layer.linears[name], packed, shard) for name, packed in single.items()},
        experts={
            name: tuple(_cut_linear(linear, packed, shard) for linear in layer.experts[name])
            for name, packed in experts.items()
        },
    )


def _cut_linear(linear: AnyLinear, packed: PackedLinear, shard: Shard) -> Linear:
    if isinstance(linear, QuantizedLinear):
        raise ConfigError(
            f"{packed.name} is kept quantised, and ranks share plain weights only; "
            "set quant_storage to 'dequantize'"
        )
    weight, bias, axis = linear.dense(), linear.bias, packed.parts[0].shard
    if axis == "replicate":
        return linear
    if axis == "row":
        # What is added to a sum over the ranks is added by one of them.
        return Linear(
            shard.cut(weight, 1, (weight.shape[1],), f"inputs of {packed.name}"),
            bias if shard.tp_rank == 0 else None,
            kernel=linear.kernel,
        )
    widths, what = section_widths(packed), f"outputs of {packed.name}"
    return Linear(
        shard.cut(weight, 0, widths, what),
        None if bias is None else shard.cut(bias, 0, widths, what),
        kernel=linear.kernel,
    )

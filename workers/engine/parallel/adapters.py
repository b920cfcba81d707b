"""One rank's share of an adapter."""

from __future__ import annotations

from kernels.lora.tables import LoRASlice, PackedLoRA, Slice
from workers.engine.core.errors import ConfigError
from workers.engine.lora.tables.packed_slots import PackedAdapter, PackedKey
from workers.engine.model.config import ModelConfig
from workers.engine.model.layout import layer_modules
from workers.engine.model.modules import LinearModule, PackedLinear
from workers.engine.parallel.shard import Shard


def cut_adapter(adapter: PackedAdapter, config: ModelConfig, shard: Shard) -> PackedAdapter:
    """Cut B if the module's outputs are shared out, and A if its inputs are."""
    modules = {
        PackedKey(layer, packed.name, packed.expert): packed
        for layer in range(config.num_layers)
        for packed in layer_modules(config, layer)
    }
    return {key: _cut_module(weights, modules[key], shard) for key, weights in adapter.items()}


def _cut_module(weights: PackedLoRA, packed: PackedLinear, shard: Shard) -> PackedLoRA:
    if any(part.bias is not None or part.dora is not None for part in weights.slices):
        raise ConfigError("adapters with DoRA or lora_bias are not served on several ranks; use one")
    axis = packed.parts[0].shard
    if axis == "replicate":
        return weights
    if axis == "row":
        inputs = weights.a.shape[1]
        return PackedLoRA(shard.cut(weights.a, 1, (inputs,), f"inputs of {packed.name}"), weights.slices)
    starts = _starts(packed.parts)
    return PackedLoRA(
        weights.a, tuple(_cut_slice(part, starts[part.out.start], shard) for part in weights.slices)
    )


def _starts(parts: tuple[LinearModule, ...]) -> dict[int, LinearModule]:
    starts, column = {}, 0
    for part in parts:
        starts[column] = part
        column += part.out_features
    return starts


def _cut_slice(part: LoRASlice, module: LinearModule, shard: Shard) -> LoRASlice:
    what = f"outputs of {module.path}"
    start = shard.of(part.out.start, what)
    b_t = shard.cut(part.b_t, 1, module.sections or (module.out_features,), what)
    return part._replace(out=Slice(start, start + b_t.shape[1]), b_t=b_t)

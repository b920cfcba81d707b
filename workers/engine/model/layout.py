"""Which linear modules a layer has: the one place where weights, adapters and shards read it."""

from __future__ import annotations

from workers.engine.model.config import ModelConfig
from workers.engine.model.families import DenseMLP
from workers.engine.model.modules import LinearModule, PackedLinear


def layer_path(layer: int) -> str:
    """Return a layer's name in the checkpoint, which is also PEFT's."""
    return f"model.layers.{layer}"


def layer_modules(config: ModelConfig, _layer: int) -> tuple[PackedLinear, ...]:
    """Return the linear modules of one layer as the forward pass multiplies with them."""
    return (*_attention_modules(config), *_mlp_modules(config, config.family.mlp))


def _attention_modules(config: ModelConfig) -> tuple[PackedLinear, ...]:
    hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    qkv = _packed(
        "qkv", "self_attn", config.family.qkv, hidden, (q_size, kv_size, kv_size), config.family.has_qkv_bias
    )
    o = LinearModule("self_attn.o_proj", q_size, hidden, "row")
    return qkv, PackedLinear("o", (o,))


def _mlp_modules(config: ModelConfig, mlp: DenseMLP) -> tuple[PackedLinear, ...]:
    hidden, width = config.hidden_size, config.intermediate_size
    down = LinearModule("mlp.down_proj", width, hidden, "row")
    return _packed("gate_up", "mlp", mlp.gate_up, hidden, (width, width)), PackedLinear("down", (down,))


def _packed(
    name: str,
    parent: str,
    names: tuple[str, ...],
    in_features: int,
    widths: tuple[int, ...],
    has_bias: bool = False,
) -> PackedLinear:
    """Pack modules of these output widths; a single name is a module that the file holds fused already."""
    out_features = widths if len(names) == len(widths) else (sum(widths),)
    parts = tuple(
        LinearModule(f"{parent}.{part}", in_features, width, "column", has_bias)
        for part, width in zip(names, out_features, strict=True)
    )
    return PackedLinear(name, parts)

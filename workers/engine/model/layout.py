"""Which weights a model has, by name: the one place where loading, adapters and shards read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from workers.engine.model.config import Experts, ModelConfig
from workers.engine.model.families import DenseMLPNames, SparseMLPNames
from workers.engine.model.modules import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    SINKS,
    LinearModule,
    PackedLinear,
    ShardAxis,
    tensor_names,
)


def tied_name(has: Callable[[str], bool]) -> str:
    """Return the tensor that is embedding and head of a tied checkpoint: some hold it as the head alone."""
    return HEAD if has(HEAD) and not has(EMBEDDING) else EMBEDDING


def layer_path(layer: int) -> str:
    """Return a layer's name in the checkpoint, which is also PEFT's."""
    return f"model.layers.{layer}"


def layer_modules(config: ModelConfig, layer: int) -> tuple[PackedLinear, ...]:
    """Return the linear modules of one layer as the forward pass multiplies with them."""
    experts, sparse = config.experts_of(layer), config.family.sparse_mlp
    if experts is None or sparse is None:
        return (*_attention_modules(config), *_mlp_modules(config, config.family.mlp))
    return (*_attention_modules(config), *_expert_modules(config.hidden_size, experts, sparse))


def _attention_modules(config: ModelConfig) -> tuple[PackedLinear, ...]:
    hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    family, widths = config.family, (q_size, kv_size, kv_size)
    has_qkv_bias = family.has_qkv_bias or config.attention_bias
    qkv = _packed("qkv", "self_attn", family.qkv, hidden, widths, has_qkv_bias)
    has_o_bias = family.has_o_bias and config.attention_bias
    o = LinearModule("self_attn.o_proj", q_size, hidden, "row", has_o_bias)
    return qkv, PackedLinear("o", (o,))


def _mlp_modules(config: ModelConfig, mlp: DenseMLPNames) -> tuple[PackedLinear, ...]:
    hidden, width, has_bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    gate_up = _packed("gate_up", "mlp", mlp.gate_up, hidden, (width, width), has_bias)
    down = LinearModule("mlp.down_proj", width, hidden, "row", has_bias)
    return gate_up, PackedLinear("down", (down,))


def _expert_modules(hidden: int, experts: Experts, sparse: SparseMLPNames) -> Iterator[PackedLinear]:
    bias, path = sparse.has_bias, f"{sparse.parent}.{sparse.router}"
    owner = f"{path}.weight" if sparse.is_stacked else ""
    router = LinearModule(path, hidden, experts.num_experts, "replicate", bias, parameter=owner)
    yield PackedLinear("router", (router,))
    for expert in range(experts.num_experts):
        parent, width = f"{sparse.parent}.experts.{expert}", experts.width
        if sparse.is_stacked:
            (name,), stacks = sparse.gate_up, f"{sparse.parent}.experts"
            stack, owner = f"{stacks}.{name}", f"{stacks}.{sparse.down}"
            one = LinearModule(f"{parent}.{name}", hidden, 2 * width, "column", bias, parameter=stack)
            gate_up = PackedLinear("gate_up", (one,))
        else:
            gate_up, owner = _packed("gate_up", parent, sparse.gate_up, hidden, (width, width), bias), ""
        down = LinearModule(f"{parent}.{sparse.down}", width, hidden, "row", bias, parameter=owner)
        yield replace(gate_up, expert=expert, num_experts=experts.num_experts)
        yield PackedLinear("down", (down,), expert, experts.num_experts)


def _packed(
    name: str,
    parent: str,
    names: tuple[str, ...],
    in_features: int,
    widths: tuple[int, ...],
    has_bias: bool = False,
) -> PackedLinear:
    """Pack modules of these output widths; a single name is a module that the file holds fused already."""
    is_fused = len(names) == 1
    parts = tuple(
        LinearModule(
            f"{parent}.{part}", in_features, width, "column", has_bias, sections=widths if is_fused else ()
        )
        for part, width in zip(names, (sum(widths),) if is_fused else widths, strict=True)
    )
    return PackedLinear(name, parts)


def layer_norms(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Return name below the layer and width of each norm that a layer has, by its field of `LayerWeights`."""
    names, hidden, head = config.family.norms, config.hidden_size, config.head_dim
    q_norm, k_norm = ("self_attn.q_norm", "self_attn.k_norm") if config.family.has_qk_norm else (None, None)
    spans = config.family.qk_norm_spans_heads
    norms = {
        "pre_attention_norm": (names.pre_attention, hidden),
        "post_attention_norm": (names.post_attention, hidden),
        "pre_mlp_norm": (names.pre_mlp, hidden),
        "post_mlp_norm": (names.post_mlp, hidden),
        "q_norm": (q_norm, config.num_heads * head if spans else head),
        "k_norm": (k_norm, config.num_kv_heads * head if spans else head),
    }
    return {field: (name, width) for field, (name, width) in norms.items() if name is not None}


def weight_shards(config: ModelConfig) -> dict[str, ShardAxis]:
    """Return how each tensor of the checkpoint is cut between devices, by the tensor's name."""
    shards: dict[str, ShardAxis] = {EMBEDDING: "vocabulary", f"{FINAL_NORM}.weight": "replicate"}
    if not config.tie_word_embeddings:
        shards[HEAD] = "vocabulary"
    for layer in range(config.num_layers):
        for packed in layer_modules(config, layer):
            for part in packed.parts:
                weight, bias = tensor_names(layer_path(layer), packed, part)
                shards[weight] = part.shard
                if part.has_bias:  # what is added to a sum over devices is added once
                    shards[bias] = "column" if part.shard == "column" else "replicate"
        if config.family.has_sinks:
            shards[f"{layer_path(layer)}.{SINKS}"] = "column"
        for name, _ in layer_norms(config).values():
            shards[f"{layer_path(layer)}.{name}.weight"] = "replicate"
    return shards

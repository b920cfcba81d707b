"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from workers.engine.model.families.family import Family, SparseMLPNames
from workers.engine.model.families.layer_types import all_sliding

MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    reads=frozenset({"sliding_window"}),
    layer_type=all_sliding,
    sparse_mlp=SparseMLPNames(
        parent="block_sparse_moe",
        gate_up=("w1", "w3"),
        down="w2",
        width_key="intermediate_size",
    ),
)

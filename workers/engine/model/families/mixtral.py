"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from workers.engine.model.families.family import Family, SparseMLPNames
from workers.engine.model.families.layer_types import all_sliding

MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    defaults={
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    reads=frozenset({"sliding_window"}),
    layer_type=all_sliding,
    sparse_mlp=SparseMLPNames(
        parent="block_sparse_moe",
        gate_up=("w1", "w3"),
        down="w2",
        num_experts_keys=("num_experts", "num_local_experts"),
        width_key="intermediate_size",
    ),
)

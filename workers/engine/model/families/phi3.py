"""Phi 3, 3.5 and 4: Llama whose files hold q, k, v as one matrix, and gate, up as one."""

from __future__ import annotations

from workers.engine.model.families.family import DenseMLPNames, Family
from workers.engine.model.families.layer_types import all_sliding

PHI3 = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    reads=frozenset({"sliding_window", "partial_rotary_factor"}),
    rope_types=frozenset({"default", "longrope"}),
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    layer_type=all_sliding,
    qkv=("qkv_proj",),
    mlp=DenseMLPNames(gate_up=("gate_up_proj",)),
)

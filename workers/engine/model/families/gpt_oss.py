"""GPT-OSS: sinks in every softmax, a window in every second layer, experts with biases and a clamped gate."""

from __future__ import annotations

from workers.engine.model.families.family import Family, SparseMLPNames
from workers.engine.model.families.layer_types import sliding_and_full

GPT_OSS = Family(
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    defaults={
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    default_rope={
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    reads=frozenset({"attention_bias", "sliding_window", "layer_types"}),
    layer_type=sliding_and_full,
    has_sinks=True,
    sparse_mlp=SparseMLPNames(
        router="router",
        gate_up=("gate_up_proj",),
        num_experts_keys=("num_experts", "num_local_experts"),
        width_key="intermediate_size",
        is_stacked=True,
        has_bias=True,
        clamps=True,
    ),
)

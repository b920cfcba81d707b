"""GLM-4: half of each head is rotated, in neighbouring pairs; the 0414 models norm after each block, too."""

from __future__ import annotations

from dataclasses import replace

from workers.engine.model.families.family import DenseMLPNames, Family, LayerNorms

GLM = Family(
    architecture="GlmForCausalLM",
    model_type="glm",
    defaults={
        "vocab_size": 151552,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
    },
    reads=frozenset({"attention_bias", "partial_rotary_factor"}),
    has_o_bias=False,
    rotates_pairs=True,
    mlp=DenseMLPNames(gate_up=("gate_up_proj",)),
)

GLM4 = replace(
    GLM,
    architecture="Glm4ForCausalLM",
    model_type="glm4",
    norms=LayerNorms(
        post_attention="post_self_attn_layernorm",
        pre_mlp="post_attention_layernorm",
        post_mlp="post_mlp_layernorm",
    ),
)

"""Gemma 1 to 3 (text): norms that add one and GeGLU; from 2 on norms after each block, and windows."""

from __future__ import annotations

from workers.engine.model.families.family import Family, LayerNorms
from workers.engine.model.families.layer_types import sliding_and_full, sliding_but_every_nth

_NORMS = LayerNorms(
    post_attention="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
)
_DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_SERVED = {"use_bidirectional_attention": (None, False)}
_READS = frozenset(
    {"attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"}
)

GEMMA = Family(
    architecture="GemmaForCausalLM",
    model_type="gemma",
    defaults={
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    reads=frozenset({"attention_bias"}),
    served={
        "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # the official files say gelu, and mean tanh's
        "use_bidirectional_attention": (None, False),
    },
    activation="gelu_pytorch_tanh",
    norm_offset=1.0,
    scales_embedding=True,
)

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    defaults=_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    reads=_READS | {"attn_logit_softcapping"},
    served=_SERVED,
    layer_type=sliding_and_full,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    norms=_NORMS,
    norm_offset=1.0,
    scales_embedding=True,
)

GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    defaults=_DEFAULTS
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
    },
    reads=_READS,
    served=_SERVED,
    local_rope_key="rope_local_base_freq",
    layer_type=sliding_but_every_nth,
    has_qk_norm=True,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    norms=_NORMS,
    norm_offset=1.0,
    scales_embedding=True,
)

"""OLMo 2 and 3: norms after each block and none before it, queries and keys normed over all heads at once."""

from __future__ import annotations

from dataclasses import replace

from workers.engine.model.families.family import Family, LayerNorms
from workers.engine.model.families.layer_types import sliding_but_every_fourth

_DEFAULTS = {"vocab_size": 50304, "rms_norm_eps": 1e-5}

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    defaults=_DEFAULTS,
    reads=frozenset({"attention_bias"}),
    has_qk_norm=True,
    qk_norm_spans_heads=True,
    norms=LayerNorms(
        pre_attention=None,
        post_attention="post_attention_layernorm",
        pre_mlp=None,
        post_mlp="post_feedforward_layernorm",
    ),
)

OLMO3 = replace(
    OLMO2,
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    defaults=_DEFAULTS | {"rope_theta": 5e5, "default_theta": 5e5, "sliding_window": 4096},
    reads=frozenset({"attention_bias", "sliding_window", "layer_types"}),
    # No key of the older layout is for layers with a window: in transformers they have the class's default.
    local_rope_key="default_theta",
    layer_type=sliding_but_every_fourth,
)

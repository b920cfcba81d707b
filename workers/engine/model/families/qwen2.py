"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from workers.engine.model.families.family import Family
from workers.engine.model.families.layer_types import sliding_from_max_window_layers

QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    defaults=QWEN_DEFAULTS,
    reads=frozenset({"sliding_window", "use_sliding_window", "layer_types"}),
    layer_type=sliding_from_max_window_layers,
    has_qkv_bias=True,
)

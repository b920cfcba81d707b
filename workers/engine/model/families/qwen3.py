"""Qwen 3: Llama with norms on the queries and keys of every head."""

from __future__ import annotations

from workers.engine.model.families.family import Family
from workers.engine.model.families.layer_types import sliding_from_max_window_layers
from workers.engine.model.families.qwen2 import QWEN_DEFAULTS

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    defaults={**QWEN_DEFAULTS, "head_dim": 128},
    reads=frozenset({"attention_bias", "sliding_window", "use_sliding_window", "layer_types"}),
    layer_type=sliding_from_max_window_layers,
    has_qk_norm=True,
)

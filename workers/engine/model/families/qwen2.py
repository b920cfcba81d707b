"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from workers.engine.model.families.family import Family
from workers.engine.model.families.layer_types import sliding_from_max_window_layers

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    reads=frozenset({"sliding_window", "use_sliding_window", "layer_types"}),
    layer_type=sliding_from_max_window_layers,
    has_qkv_bias=True,
)

"""Mistral: Llama with a sliding window over every layer, if config.json gives one."""

from __future__ import annotations

from workers.engine.model.families.family import Family
from workers.engine.model.families.layer_types import all_sliding

MISTRAL = Family(
    architecture="MistralForCausalLM",
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    reads=frozenset({"sliding_window"}),
    layer_type=all_sliding,
)

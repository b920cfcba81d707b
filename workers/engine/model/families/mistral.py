"""Mistral: Llama with a sliding window over every layer, if config.json gives one."""

from __future__ import annotations

from workers.engine.model.families.family import Family
from workers.engine.model.families.layer_types import all_sliding

MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    defaults={
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    reads=frozenset({"sliding_window"}),
    layer_type=all_sliding,
)

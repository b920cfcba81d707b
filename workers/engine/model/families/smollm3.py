"""SmolLM3: Llama with layers that rotate no heads, and a window over those if config.json uses one."""

from __future__ import annotations

from workers.engine.model.families.family import Family, LayerType, RawConfig


def _rotates(config: RawConfig, layer: int) -> bool:
    listed = config.get("no_rope_layers")
    if listed is None:
        return bool((layer + 1) % config["no_rope_layer_interval"])
    if not isinstance(listed, list) or len(listed) <= layer or listed[layer] not in (0, 1):
        raise ValueError(
            f"no_rope_layers is {listed!r}; it must have a 1 for every layer that rotates and a 0 for every "
            "other: repair the config"
        )
    return bool(listed[layer])


def _sliding_unless_rotated(config: RawConfig, layer: int) -> LayerType:
    has_window = "sliding_window" in config and not _rotates(config, layer)
    return "sliding_attention" if has_window else "full_attention"


SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    reads=frozenset({"attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "layer_types"}),
    layer_type=_sliding_unless_rotated,
    rotates=_rotates,
)

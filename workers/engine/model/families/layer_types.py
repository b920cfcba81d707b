"""Which layers look back through a window, for checkpoints whose config.json does not list `layer_types`."""

from __future__ import annotations

from workers.engine.model.families.family import LayerType, RawConfig


def all_sliding(_config: RawConfig, _layer: int) -> LayerType:
    """Every layer has the window."""
    return "sliding_attention"


def sliding_from_max_window_layers(config: RawConfig, layer: int) -> LayerType:
    """The first `max_window_layers` layers see everything (Qwen)."""
    return "sliding_attention" if layer >= config["max_window_layers"] else "full_attention"


def sliding_and_full(_config: RawConfig, layer: int) -> LayerType:
    """Every second layer sees everything (Gemma 2)."""
    return "full_attention" if layer % 2 else "sliding_attention"


def sliding_but_every_fourth(_config: RawConfig, layer: int) -> LayerType:
    """Every fourth layer sees everything (OLMo 3)."""
    return "sliding_attention" if (layer + 1) % 4 else "full_attention"


def sliding_but_every_nth(config: RawConfig, layer: int) -> LayerType:
    """One layer in `sliding_window_pattern` sees everything (Gemma 3)."""
    is_last = (layer + 1) % config["sliding_window_pattern"] == 0
    return "full_attention" if is_last else "sliding_attention"

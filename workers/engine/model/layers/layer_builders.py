"""Which block an architecture's layers have: the sequential one unless a builder is named here."""

from __future__ import annotations

from collections.abc import Callable

from workers.engine.model.layers.decoder_layer import DecoderLayer, LayerParts, SequentialLayer
from workers.engine.model.layers.post_norm_layer import PostNormLayer

LayerBuilder = Callable[[LayerParts], DecoderLayer]
LAYER_BUILDERS: dict[str, LayerBuilder] = {
    "Olmo2ForCausalLM": PostNormLayer,
    "Olmo3ForCausalLM": PostNormLayer,
}
"""By architecture."""


def build_layer(parts: LayerParts) -> DecoderLayer:
    """Build one layer as its family's block."""
    return LAYER_BUILDERS.get(parts.config.family.architecture, SequentialLayer)(parts)

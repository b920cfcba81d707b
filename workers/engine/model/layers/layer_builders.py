"""Which block an architecture's layers have: the sequential one unless a builder is named here."""

from __future__ import annotations

from collections.abc import Callable

from workers.engine.model.layers.decoder_layer import DecoderLayer, LayerParts, SequentialLayer

LayerBuilder = Callable[[LayerParts], DecoderLayer]
LAYER_BUILDERS: dict[str, LayerBuilder] = {}
"""By architecture."""


def build_layer(parts: LayerParts) -> DecoderLayer:
    """Build one layer as its family's block."""
    return LAYER_BUILDERS.get(parts.config.family.architecture, SequentialLayer)(parts)

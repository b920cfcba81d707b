"""The model's modules in the table that LoRA kernels read: what each is called there, and its shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

import torch

from kernels.lora.tables import AdapterLoRA, PackedLoRA, PackedShape, WeightsKey
from workers.engine.lora.files.base import EMBEDDING, HEAD, ModuleShape, PackedKey, PackedLayout, Vocabulary

__all__ = ["PackedAdapter", "PackedKey", "PackedLayout", "adapter_lora", "module_name", "packed_shapes"]

PackedAdapter = Mapping[PackedKey, PackedLoRA]


def module_name(layer: int, module: str) -> Hashable:
    """Return what a packed module is called in the table; all experts of a layer share one."""
    return PackedKey(layer, module)


def packed_shapes(
    shapes: Mapping[str, ModuleShape],
    layout: PackedLayout,
    dtype: torch.dtype,
    vocabulary: Vocabulary | None = None,
) -> dict[Hashable, PackedShape]:
    """Return the table's modules: the layout's, embedding and head where adapters can change them.

    The head's are float32, as logits are.
    """
    num_experts = Counter(key._replace(expert=None) for key in layout)
    packed: dict[Hashable, PackedShape] = {}
    for key, paths in layout.items():
        name = key._replace(expert=None)
        widths = tuple(shapes[path].out_features for path in paths)
        packed[name] = PackedShape(shapes[paths[0]].in_features, widths, dtype, num_experts[name])
    if vocabulary is not None:
        size, hidden_size = vocabulary.size, vocabulary.hidden_size
        packed[EMBEDDING] = PackedShape(size, (hidden_size,), dtype, is_lookup=True)
        packed[HEAD] = PackedShape(hidden_size, (size,), torch.float32)
    return packed


def adapter_lora(
    modules: PackedAdapter, vocabulary: Mapping[Hashable, PackedLoRA] | None = None
) -> AdapterLoRA:
    """Return an adapter's weights by the names of the table; `vocabulary` has those of embedding and head."""
    named = {
        WeightsKey(key._replace(expert=None), key.expert or 0): packed for key, packed in modules.items()
    }
    return named | {WeightsKey(name): packed for name, packed in (vocabulary or {}).items()}

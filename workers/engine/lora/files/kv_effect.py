"""Tells adapters that leave every key and value as the base makes them."""

from __future__ import annotations

from collections.abc import Iterable

from workers.engine.lora.files.base import HEAD, PackedLayout

_QKV = "qkv"


def changes_kv(modules: Iterable[str], layout: PackedLayout) -> bool:
    """Whether an adapter of these modules, by path, can change any key or value of the model.

    The head comes after all of them, and so do the last layer's queries, attention output, router and MLP. A
    module that is not known to be harmless counts as one that changes them.
    """
    return not _after_kv(layout).issuperset(modules)


def _after_kv(layout: PackedLayout) -> set[str]:
    last_layer = max(key.layer for key in layout)
    harmless = {HEAD}
    for key, paths in layout.items():
        if key.layer == last_layer:
            # If queries, keys and values are one module in the file, all of it changes keys and values.
            num_harmless = len(paths) if key.module != _QKV else 1 if len(paths) > 1 else 0
            harmless.update(paths[:num_harmless])
    return harmless

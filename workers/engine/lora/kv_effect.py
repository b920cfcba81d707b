"""Tells adapters that leave every key and value as the base makes them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HEAD = re.compile(r"(.+\.)?lm_head")
_AFTER_KV = re.compile(r"(.+\.)?layers\.(?P<layer>\d+)\.(self_attn\.(q_proj|o_proj)|mlp\..+)")
"""Modules of a layer whose results reach no key and no value before the next layer."""


def changes_kv(modules: Iterable[str], num_layers: int) -> bool:
    """Whether an adapter of these modules, by path, can change any key or value of the model.

    The head comes after all of them, and so do the last layer's queries, attention output and MLP. A module
    that is not known to be harmless counts as one that changes them.
    """
    return not all(_spares_kv(module, num_layers - 1) for module in modules)


def _spares_kv(module: str, last_layer: int) -> bool:
    if _HEAD.fullmatch(module):
        return True
    match = _AFTER_KV.fullmatch(module)
    return match is not None and int(match["layer"]) == last_layer

"""Which linear layers the model packs into one, and the slot tables of all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from kernels.lora_slots import PackedLoRA, PackedModuleSlots
from workers.engine.errors import ConfigError
from workers.engine.lora.base import ModuleShape

PackedModule = Literal["qkv", "o", "gate_up", "down"]
SUB_MODULES: dict[PackedModule, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class PackedKey(NamedTuple):
    """A packed module's place in the model."""

    layer: int
    module: PackedModule


PackedLayout = Mapping[PackedKey, tuple[str, ...]]  # the module paths that are packed, in order
PackedAdapter = Mapping[PackedKey, PackedLoRA]


def packed_layout(shapes: Mapping[str, ModuleShape], num_layers: int) -> PackedLayout:
    """Find every packed module's parts among the base's linear layers."""
    layout: dict[PackedKey, tuple[str, ...]] = {}
    by_place = {match[1]: path for path in shapes if (match := re.search(r"\blayers\.(\d+\..+)$", path))}
    for layer in range(num_layers):
        for module, parts in SUB_MODULES.items():
            missing = [part for part in parts if f"{layer}.{part}" not in by_place]
            if missing:
                raise ConfigError(
                    f"layer {layer} of the base has no {missing[0]}; give the shapes of all its linear layers"
                )
            layout[PackedKey(layer, module)] = tuple(by_place[f"{layer}.{part}"] for part in parts)
    return layout


class PackedSlotTables:
    """Every packed module's slot table; activating an adapter points one slot of each at its weights."""

    def __init__(self, shapes: Mapping[str, ModuleShape], layout: PackedLayout, num_slots: int) -> None:
        self._tables = {
            key: PackedModuleSlots(
                in_features=shapes[paths[0]].in_features,
                out_slices=[shapes[path].out_features for path in paths],
                num_slots=num_slots,
            )
            for key, paths in layout.items()
        }

    def table(self, layer: int, module: PackedModule) -> PackedModuleSlots:
        """Return one packed module's table; it is the same object for the life of the engine."""
        return self._tables[PackedKey(layer, module)]

    def point(self, slot: int, adapter: PackedAdapter) -> None:
        """Make `slot` serve an adapter; modules it lacks are cleared, so nothing of the last one stays."""
        for key, table in self._tables.items():
            table.set(slot, adapter.get(key))

    def clear(self, slot: int) -> None:
        """Make `slot` serve nothing."""
        self.point(slot, {})

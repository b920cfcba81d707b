"""The slot tables of all packed modules."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.lora_slots import PackedLoRA, PackedModuleSlots
from workers.engine.lora.base import ModuleShape, PackedKey, PackedLayout

__all__ = ["PackedAdapter", "PackedKey", "PackedLayout", "PackedSlotTables"]

PackedAdapter = Mapping[PackedKey, PackedLoRA]


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

    def table(self, layer: int, module: str) -> PackedModuleSlots:
        """Return one packed module's table; it is the same object for the life of the engine."""
        return self._tables[PackedKey(layer, module)]

    def point(self, slot: int, adapter: PackedAdapter) -> None:
        """Make `slot` serve an adapter; modules it lacks are cleared, so nothing of the last one stays."""
        for key, table in self._tables.items():
            table.set(slot, adapter.get(key))

    def clear(self, slot: int) -> None:
        """Make `slot` serve nothing."""
        self.point(slot, {})

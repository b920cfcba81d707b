"""The slot tables of all packed modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from kernels.lora_slots import PackedLoRA, PackedModuleSlots
from workers.engine.lora.base import ModuleShape, PackedKey, PackedLayout

__all__ = ["PackedAdapter", "PackedKey", "PackedLayout", "PackedSlotTables"]

PackedAdapter = Mapping[PackedKey, PackedLoRA]


class PackedSlotTables:
    """Every packed module's slot table; activating an adapter points one slot of each at its weights.

    All experts of a layer share a table, in which a slot of expert e has place e * num_slots + slot: one
    kernel call then serves the rows of all experts.
    """

    def __init__(self, shapes: Mapping[str, ModuleShape], layout: PackedLayout, num_slots: int) -> None:
        self._num_slots = num_slots
        self._tables: dict[PackedKey, PackedModuleSlots] = {}
        members: dict[PackedKey, list[PackedKey]] = defaultdict(list)
        for key in layout:
            members[key._replace(expert=None)].append(key)
        for shared, keys in members.items():
            paths = layout[keys[0]]
            table = PackedModuleSlots(
                in_features=shapes[paths[0]].in_features,
                out_slices=[shapes[path].out_features for path in paths],
                num_slots=num_slots * len(keys),
            )
            self._tables[shared] = table
        self._filled: dict[int, PackedAdapter] = {}  # what each slot serves

    def table(self, layer: int, module: str) -> PackedModuleSlots:
        """Return one packed module's table; it is the same object for the life of the engine."""
        return self._tables[PackedKey(layer, module)]

    def point(self, slot: int, adapter: PackedAdapter) -> None:
        """Make `slot` serve an adapter; modules it lacks are cleared, so nothing of the last one stays."""
        for key in self._filled.get(slot, {}):
            if key not in adapter:
                self._set(slot, key, None)
        for key, weights in adapter.items():
            self._set(slot, key, weights)
        self._filled[slot] = adapter

    def clear(self, slot: int) -> None:
        """Make `slot` serve nothing."""
        self.point(slot, {})

    def _set(self, slot: int, key: PackedKey, weights: PackedLoRA | None) -> None:
        place = slot + (key.expert or 0) * self._num_slots
        self._tables[key._replace(expert=None)].set(place, weights)

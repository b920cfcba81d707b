"""The slot tables of all packed modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.tables import PackedLoRA, PackedModuleSlots, SlotRows
from workers.engine.lora.files.base import ModuleShape, PackedKey, PackedLayout

__all__ = ["DescribedAdapter", "PackedAdapter", "PackedKey", "PackedLayout", "PackedSlotTables"]

PackedAdapter = Mapping[PackedKey, PackedLoRA]


@dataclass(frozen=True, slots=True)
class _TablePart:
    """What an adapter puts into one table."""

    table: PackedModuleSlots
    places: Tensor  # [num_entries] int64, slot 0 of each expert that it changes; [0] in others' tables
    rows: SlotRows


DescribedAdapter = tuple[_TablePart, ...]
"""An adapter checked and described for every table, so that activating it looks at no module again."""


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
        self._filled: dict[int, DescribedAdapter] = {}  # what each slot serves

    def table(self, layer: int, module: str) -> PackedModuleSlots:
        """Return one packed module's table; it is the same object for the life of the engine."""
        return self._tables[PackedKey(layer, module)]

    def describe(self, adapter: PackedAdapter) -> DescribedAdapter:
        """Check an adapter and describe it for `point`; ValueError for a layout no kernel reads."""
        keys_of: dict[PackedKey, list[PackedKey]] = defaultdict(list)
        for key in adapter:
            keys_of[key._replace(expert=None)].append(key)
        return tuple(self._part(shared, adapter, keys) for shared, keys in keys_of.items())

    def _part(self, shared: PackedKey, adapter: PackedAdapter, keys: list[PackedKey]) -> _TablePart:
        table = self._tables[shared]
        places = torch.tensor([(key.expert or 0) * self._num_slots for key in keys])
        return _TablePart(table, places, table.describe([adapter[key] for key in keys]))

    def point(self, slot: int, adapter: DescribedAdapter) -> None:
        """Make `slot` serve an adapter; it is cleared before, so nothing of the last one stays."""
        self.clear(slot)
        self._filled[slot] = adapter
        for part in adapter:
            part.table.point(part.places + slot, part.rows)

    def clear(self, slot: int) -> None:
        """Make `slot` serve nothing."""
        for part in self._filled.pop(slot, ()):
            part.table.clear(part.places + slot)

"""A packed module alone in its table."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.lora.tables import LoRAModule, LoRATable, PackedLoRA, PackedShape, WeightsKey


class OneModule:
    """A table with one module, slot s serving `adapters[s]`."""

    def __init__(
        self,
        in_features: int,
        out_slices: Sequence[int],
        adapters: Sequence[PackedLoRA | None],
        dtype: torch.dtype,
        max_rank: int = 1024,
    ) -> None:
        shape = PackedShape(in_features, tuple(out_slices), dtype)
        self.table = LoRATable({"module": shape}, len(adapters), max_rank=max_rank)
        for slot, weights in enumerate(adapters):
            self.set(slot, weights)

    @property
    def module(self) -> LoRAModule:
        return self.table.module("module")

    def set(self, slot: int, weights: PackedLoRA | None) -> None:
        if weights is None:
            self.table.clear(slot)
        else:
            self.table.point(slot, self.table.describe({WeightsKey("module"): weights}))

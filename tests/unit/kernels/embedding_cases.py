"""Adapters of an embedding in a table, and a batch of tokens that want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.reference import apply_dora
from kernels.lora.segments import Segments, SlotScale
from kernels.lora.tables import (
    NUM_DORA_TERMS,
    LoRAModule,
    LoRASlice,
    LoRATable,
    PackedLoRA,
    PackedShape,
    Slice,
    WeightsKey,
)

VOCAB = 50


@dataclass(frozen=True)
class EmbeddingCase:
    """A batch, and its adapters."""

    embedded: Tensor
    token_ids: Tensor
    table: LoRATable
    segments: Segments

    @property
    def module(self) -> LoRAModule:
        return self.table.module("embedding")

    def exact(self) -> Tensor:  # [num_rows, hidden_size] float64
        """Return what must become of the present rows, straight from the definition."""
        rows = self.embedded.double()
        for lora_pass in self.segments.passes:
            for start, end, slot, expert in lora_pass.runs:
                weights, scales = (
                    self.module.weights(slot, expert),
                    lora_pass.scales[start:end, None].double(),
                )
                if weights is not None:
                    (part,) = weights.slices
                    a = weights.a[self.token_ids[start:end]].double()
                    sums = rows[start:end] + scales * (a @ part.b_t.double())
                    dora = part.dora
                    rows[start:end] = sums if dora is None else apply_dora(sums, dora.double(), scales)
        return rows


def make_embedding_case(
    *,
    ranks: list[int],  # by slot; 0: the adapter leaves the embedding alone; odd slots have DoRA
    runs: Sequence[tuple[int, tuple[SlotScale, ...]]],
    hidden_size: int,
    dtype: torch.dtype,
    block_rows: int | None = None,
    num_tiles: int = 0,
) -> EmbeddingCase:
    """Draw everything at random."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    other = PackedShape(8, (4,), dtype)
    shape = PackedShape(VOCAB, (hidden_size,), dtype, is_lookup=True)
    table = LoRATable({"other": other, "embedding": shape}, len(ranks))
    for slot, rank in enumerate(ranks):
        if rank == 0:
            continue
        dora = random(NUM_DORA_TERMS, hidden_size)
        dora[1:4] = 4.0 + dora[1:4].abs()
        part = LoRASlice(
            Slice(0, hidden_size),
            Slice(0, rank),
            (random(rank, hidden_size) / 4).to(dtype),
            dora=dora if slot % 2 else None,
        )
        packed = PackedLoRA(random(VOCAB, rank).to(dtype), (part,))
        table.point(slot, table.describe({WeightsKey("embedding"): packed}))
    segments = Segments.from_runs(runs, block_rows=block_rows, num_tiles=num_tiles)
    tokens = torch.randint(VOCAB, (segments.num_rows,), generator=generator)
    return EmbeddingCase(random(segments.num_rows, hidden_size).to(dtype), tokens, table, segments)

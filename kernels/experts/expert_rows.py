"""A batch sorted by the experts that its rows chose, on the host: a CPU's products are made one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.experts.sort_by_expert import SortedRows
from kernels.lora.segments import BASE_SLOT, Pass, Run, Segments


@dataclass(frozen=True, slots=True)
class ExpertRows(SortedRows):
    """Sorted rows with each expert's bounds."""

    experts: NDArray[np.int64]  # [num_rows * num_chosen], the expert of each sorted row
    bounds: tuple[tuple[int, int, int], ...]  # (expert, first row, end row) of each expert that was chosen

    @classmethod
    def of(
        cls,
        chosen: Tensor,  # [num_rows, num_chosen] int64
    ) -> Self:
        """Sort a router's choices."""
        experts, order = chosen.flatten().sort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(order.numel(), device=order.device)
        numbers = experts.numpy()
        starts = _starts(numbers)
        bounds = zip(numbers[starts].tolist(), starts.tolist(), _ends(starts, numbers.size), strict=True)
        sources = order.div(chosen.shape[1], rounding_mode="floor")
        return cls(sources, places, numbers, tuple(bounds))

    def segments(self, segments: Segments) -> Segments:
        """Return the sorted rows' adapters, each row with its expert's share of them."""
        sources = self.sources.numpy()
        passes = (
            Pass.of(
                self._runs(lora_pass, sources),
                lora_pass.scales.numpy()[sources],
                block_rows=lora_pass.block_rows,
            )
            for lora_pass in segments.passes
        )
        return Segments(len(sources), tuple(passes))

    def _runs(self, lora_pass: Pass, sources: NDArray[np.int64]) -> Iterator[Run]:
        slots = np.full(lora_pass.scales.numel(), BASE_SLOT)
        for run in lora_pass.runs:
            slots[run.start : run.end] = run.slot
        slots = slots[sources]
        starts = _starts(slots, self.experts)
        for start, end in zip(starts.tolist(), _ends(starts, slots.size), strict=True):
            if slots[start] != BASE_SLOT:
                yield Run(start, end, int(slots[start]), int(self.experts[start]))


def sort_on_host(chosen: Tensor, num_experts: int, sequence_rows: Tensor | None = None) -> ExpertRows:
    """Compute `sort_by_expert_reference` for products that are made one by one, rows of no sequence too."""
    del num_experts, sequence_rows  # only experts that were chosen have rows; few rows are nobody's
    return ExpertRows.of(chosen)


def segments_on_host(rows: SortedRows, segments: Segments) -> Segments:
    """Compute `expert_segments_reference`, with runs in place of tiles."""
    assert isinstance(rows, ExpertRows), "rows that were sorted on a device"
    return rows.segments(segments)


def _starts(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where runs of equal rows begin."""
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.concatenate(([0], np.flatnonzero(changes) + 1))


def _ends(starts: NDArray[np.int64], num_rows: int) -> list[int]:
    return [*starts[1:].tolist(), num_rows]

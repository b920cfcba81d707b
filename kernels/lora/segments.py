"""Which rows of a batch get which adapters, how strongly and in which order; built once per step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BASE_SLOT = -1


class SlotScale(NamedTuple):
    """One adapter upon a row: its slot, and what its product is multiplied by."""

    slot: int
    scale: float = 1.0


SlotScales = tuple[SlotScale, ...]
"""All adapters upon a row, in the order in which they are added; empty for base rows."""


def slots_of(adapters: SlotScales) -> tuple[int, ...]:
    """Return what a batch is ordered by: rows of the same slots share runs, whatever their scales."""
    return tuple(adapter.slot for adapter in adapters)


class Run(NamedTuple):
    """Rows `start` to `end` (exclusive), to all of which `slot` is added, each times its own scale."""

    start: int
    end: int
    slot: int
    expert: int = 0  # whose matrices of the slot's adapter, if a module has experts


class Tiles(NamedTuple):
    """Runs cut into pieces of at most a kernel's row block; a filler piece is empty and has slot -1."""

    starts: list[int]
    ends: list[int]
    slots: list[int]
    experts: list[int]


@dataclass(frozen=True, slots=True)
class Pass:
    """Runs over rows of which none is named twice, so that a kernel may work on all of them at once."""

    runs: tuple[Run, ...]
    table: Tensor = field(compare=False, repr=False)  # [num_runs, 4] int64: start, end, slot, expert
    scales: Tensor = field(compare=False, repr=False)  # [num_rows] float32, 1 for rows in no run

    @classmethod
    def of(cls, runs: Iterable[Run], scales: NDArray[np.float32]) -> Self:
        """Build from runs in row order, and a scale for every row of the batch."""
        runs = tuple(runs)
        table = torch.tensor(runs, dtype=torch.int64).view(-1, len(Run._fields))
        return cls(runs, table, torch.from_numpy(scales))

    def tiles(self, block_rows: int, *, pad_to: int = 0) -> Tiles:
        """Cut the runs into tiles of `block_rows`; fill up to `pad_to` so that a grid keeps its size."""
        cuts = [
            run._replace(start=row, end=min(row + block_rows, run.end))
            for run in self.runs
            for row in range(run.start, run.end, block_rows)
        ]
        cuts += [Run(0, 0, BASE_SLOT)] * (pad_to - len(cuts))
        return Tiles(*map(list, zip(*cuts, strict=True))) if cuts else Tiles([], [], [], [])


@dataclass(frozen=True, slots=True)
class Segments:
    """A batch in row order: pass n adds the n-th adapter of every row that has so many, base rows none.

    Passes follow one another, so that a row's sum has one order whatever its neighbours have.
    """

    num_rows: int
    passes: tuple[Pass, ...]

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, SlotScales]]) -> Self:
        """Build from (num_rows, adapters) in batch order; equal neighbours are joined, empty runs dropped."""
        filled = [_checked(num_rows, adapters) for num_rows, adapters in runs if num_rows]
        num_passes = max((len(adapters) for _, adapters in filled), default=0)
        counts = [num_rows for num_rows, _ in filled]
        passes = []
        for index in range(num_passes):
            mine = [adapters[index] if index < len(adapters) else _NONE for _, adapters in filled]
            scales = np.array([adapter.scale for adapter in mine], dtype=np.float32)
            passes.append(Pass.of(_runs(counts, mine), scales.repeat(counts)))
        return cls(sum(counts), tuple(passes))

    @classmethod
    def from_slots(cls, slots: Sequence[int]) -> Self:
        """Build from one unscaled adapter, or none (-1), per row."""
        return cls.from_runs((1, () if slot == BASE_SLOT else (SlotScale(slot),)) for slot in slots)


_NONE = SlotScale(BASE_SLOT)


def _runs(counts: list[int], adapters: list[SlotScale]) -> Iterator[Run]:
    start = 0
    for slot, group in groupby(zip(counts, adapters, strict=True), key=lambda part: part[1].slot):
        end = start + sum(num_rows for num_rows, _ in group)
        if slot != BASE_SLOT:
            yield Run(start, end, slot)
        start = end


def _checked(num_rows: int, adapters: SlotScales) -> tuple[int, SlotScales]:
    if num_rows < 0 or any(adapter.slot < 0 for adapter in adapters):
        raise ValueError(f"run of {num_rows} rows with {adapters}: give rows >= 0 and slots >= 0")
    return num_rows, adapters

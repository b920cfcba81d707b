"""Which rows of a batch get which adapters, how strongly and in which order; built once per step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BASE_SLOT = -1
BLOCK_ROWS = (16, 32, 64)
"""Rows of the tiles that GPU kernels take: 16 where every sequence has one row, more for prompts."""


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


@dataclass(frozen=True, slots=True)
class Pass:
    """Runs over rows of which none is named twice, so that a kernel may work on all of them at once."""

    runs: tuple[Run, ...]
    table: Tensor = field(compare=False, repr=False)  # [num_tiles, 4] int64: runs, then idle (0, 0, -1, 0)
    scales: Tensor = field(compare=False, repr=False)  # [num_rows] float32, 1 for rows in no run
    block_rows: int | None = None  # rows of the longest run that there may be; None: of any length
    # [num_rows] int64, each row's slot or -1; with block_rows, for kernels that work row by row
    row_slots: Tensor | None = field(default=None, compare=False, repr=False)
    made_in_step: bool = False  # table and scales are, by a kernel: shrink waits before it reads them

    @classmethod
    def of(
        cls,
        runs: Iterable[Run],
        scales: NDArray[np.float32],
        *,
        block_rows: int | None = None,
        num_tiles: int = 0,
    ) -> Self:
        """Build from runs in row order, and a scale for every row of the batch; see `Segments.from_runs`."""
        _check_tiles(block_rows, num_tiles)
        runs = tuple(runs if block_rows is None else _cut(runs, block_rows))
        rows = (*runs, *[_IDLE] * (num_tiles - len(runs)))
        table = torch.tensor(rows, dtype=torch.int64).view(-1, len(Run._fields))
        slots = None if block_rows is None else _slots_of_rows(runs, len(scales))
        return cls(runs, table, torch.from_numpy(scales), block_rows, slots)

    def whole_runs(self) -> Iterator[Run]:
        """Yield the runs as they were before they were cut."""
        whole: Run | None = None
        for run in self.runs:
            if whole is not None and run == (whole.end, run.end, whole.slot, whole.expert):
                whole = whole._replace(end=run.end)
                continue
            if whole is not None:
                yield whole
            whole = run
        if whole is not None:
            yield whole


@dataclass(frozen=True, slots=True)
class Segments:
    """A batch in row order: pass n adds the n-th adapter of every row that has so many, base rows none.

    Passes follow one another, so that a row's sum has one order whatever its neighbours have.
    """

    num_rows: int
    passes: tuple[Pass, ...]

    @classmethod
    def from_runs(
        cls,
        runs: Iterable[tuple[int, SlotScales]],
        *,
        block_rows: int | None = None,
        num_tiles: int = 0,
    ) -> Self:
        """Build from (num_rows, adapters) in batch order; equal neighbours are joined, empty runs dropped.

        GPU kernels need runs of at most `block_rows` rows, one of `BLOCK_ROWS`: a program works on each.
        Tables are filled up to `num_tiles` runs with idle ones, so that a captured grid keeps its size.
        """
        _check_tiles(block_rows, num_tiles)
        filled = [_checked(num_rows, adapters) for num_rows, adapters in runs if num_rows]
        num_passes = max((len(adapters) for _, adapters in filled), default=0)
        counts = [num_rows for num_rows, _ in filled]
        passes = []
        for index in range(num_passes):
            mine = [adapters[index] if index < len(adapters) else _NONE for _, adapters in filled]
            scales = np.array([adapter.scale for adapter in mine], dtype=np.float32)
            rows = scales.repeat(counts)
            passes.append(Pass.of(_runs(counts, mine), rows, block_rows=block_rows, num_tiles=num_tiles))
        return cls(sum(counts), tuple(passes))

    @classmethod
    def from_slots(cls, slots: Sequence[int], *, block_rows: int | None = None, num_tiles: int = 0) -> Self:
        """Build from one unscaled adapter, or none (-1), per row."""
        runs = ((1, () if slot == BASE_SLOT else (SlotScale(slot),)) for slot in slots)
        return cls.from_runs(runs, block_rows=block_rows, num_tiles=num_tiles)

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors lie on a device."""
        passes = (
            replace(
                one,
                table=one.table.to(device),
                scales=one.scales.to(device),
                row_slots=None if one.row_slots is None else one.row_slots.to(device),
            )
            for one in self.passes
        )
        return replace(self, passes=tuple(passes))


_NONE = SlotScale(BASE_SLOT)
_IDLE = Run(0, 0, BASE_SLOT)


def _runs(counts: list[int], adapters: list[SlotScale]) -> Iterator[Run]:
    start = 0
    for slot, group in groupby(zip(counts, adapters, strict=True), key=lambda part: part[1].slot):
        end = start + sum(num_rows for num_rows, _ in group)
        if slot != BASE_SLOT:
            yield Run(start, end, slot)
        start = end


def _cut(runs: Iterable[Run], block_rows: int) -> Iterator[Run]:
    for run in runs:
        for row in range(run.start, run.end, block_rows):
            yield run._replace(start=row, end=min(row + block_rows, run.end))


def _slots_of_rows(runs: Iterable[Run], num_rows: int) -> Tensor:
    slots = np.full(num_rows, BASE_SLOT, dtype=np.int64)
    for run in runs:
        slots[run.start : run.end] = run.slot
    return torch.from_numpy(slots)


def _check_tiles(block_rows: int | None, num_tiles: int) -> None:
    if block_rows is not None and block_rows not in BLOCK_ROWS:
        raise ValueError(f"block_rows is {block_rows}; give one of {BLOCK_ROWS}")
    if num_tiles < 0 or (num_tiles and block_rows is None):
        raise ValueError(f"num_tiles is {num_tiles} with block_rows {block_rows}; give both, or neither")


def _checked(num_rows: int, adapters: SlotScales) -> tuple[int, SlotScales]:
    if num_rows < 0 or any(adapter.slot < 0 for adapter in adapters):
        raise ValueError(f"run of {num_rows} rows with {adapters}: give rows >= 0 and slots >= 0")
    return num_rows, adapters

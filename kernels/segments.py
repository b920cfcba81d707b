"""Contiguous runs of batch rows that share an adapter slot, built on the host once per step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import Tensor

BASE_SLOT = -1


class Run(NamedTuple):
    """Rows `start` to `end` (exclusive), all of them served by `slot`."""

    start: int
    end: int
    slot: int


class Tiles(NamedTuple):
    """Runs cut into pieces of at most a kernel's row block; a filler piece is empty and has slot -1."""

    starts: list[int]
    ends: list[int]
    slots: list[int]


@dataclass(frozen=True, slots=True)
class Segments:
    """The batch in row order; `lora_runs` are the runs that need an adapter, the others are base rows."""

    runs: tuple[Run, ...]
    lora_runs: tuple[Run, ...]
    num_rows: int
    lora_run_table: Tensor = field(
        compare=False, repr=False
    )  # [num_lora_runs, 3] int64, `lora_runs` once more

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, int]]) -> Self:
        """Build from (num_rows, slot) in batch order; equal neighbours are joined, empty runs dropped."""
        joined: list[Run] = []
        start = 0
        filled = ((num_rows, slot) for num_rows, slot in runs if num_rows)
        for slot, group in groupby(filled, key=lambda run: run[1]):
            end = start + sum(num_rows for num_rows, _ in group)
            joined.append(_checked(Run(start, end, slot)))
            start = end
        lora_runs = tuple(run for run in joined if run.slot != BASE_SLOT)
        return cls(tuple(joined), lora_runs, start, torch.tensor(lora_runs, dtype=torch.int64).view(-1, 3))

    @classmethod
    def from_slots(cls, slots: Sequence[int]) -> Self:
        """Build from one slot per row."""
        return cls.from_runs((1, slot) for slot in slots)

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(run.start for run in self.runs)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(run.end for run in self.runs)

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(run.slot for run in self.runs)

    def tiles(self, block_rows: int, *, pad_to: int = 0) -> Tiles:
        """Cut the LoRA runs into tiles of `block_rows`; fill up to `pad_to` so that a grid keeps its size."""
        cuts = [
            Run(row, min(row + block_rows, run.end), run.slot)
            for run in self.lora_runs
            for row in range(run.start, run.end, block_rows)
        ]
        cuts += [Run(0, 0, BASE_SLOT)] * (pad_to - len(cuts))
        return Tiles([cut.start for cut in cuts], [cut.end for cut in cuts], [cut.slot for cut in cuts])


def _checked(run: Run) -> Run:
    if run.end <= run.start or run.slot < BASE_SLOT:
        raise ValueError(
            f"run of {run.end - run.start} rows in slot {run.slot}: give rows >= 0 and slots >= -1 (base)"
        )
    return run

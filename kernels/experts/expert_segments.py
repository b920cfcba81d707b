"""The adapters of rows sorted by expert on the device: each tile has one expert's share of one adapter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from kernels.experts.sort_by_expert import DeviceRows, SortedRows
from kernels.lora.segments import BASE_SLOT, BLOCK_ROWS, Pass, Segments

ExpertSegments = Callable[[SortedRows, Segments], Segments]
"""Called as `expert_segments_reference`."""

_FEW_ROWS, _MANY_ROWS = BLOCK_ROWS[0], BLOCK_ROWS[-1]
_LEAST_MEAN = 32
"""Rows of an expert, on average, from which tiles have many rows; not yet measured."""


def block_rows_for(rows: DeviceRows) -> int:
    """Return the rows of a tile of adapters: an expert's matrices are read once for each tile."""
    return _MANY_ROWS if rows.num_rows >= _LEAST_MEAN * rows.num_experts else _FEW_ROWS


def most_runs(given: Pass) -> int:
    """Return how many runs of one adapter's rows a batch has, or may have if its table is filled up.

    A filled table is one of a shape that recurs: what is launched for it must serve any other batch of it.
    """
    num_tiles = given.table.shape[0]
    return num_tiles if len(given.runs) < num_tiles else sum(1 for _ in given.whole_runs())


def most_tiles(num_sorted: int, num_runs: int, block_rows: int) -> int:
    """Return the most tiles of sorted rows that lie in at most so many runs.

    Each run begins one, and so does each block of rows.
    """
    return min(num_sorted, num_runs + num_sorted // block_rows)


def empty_segments(rows: SortedRows, segments: Segments) -> Segments:
    """Return what is to be filled for sorted rows, after a check; ValueError has the values."""
    if not isinstance(rows, DeviceRows):
        raise TypeError(f"rows are {type(rows).__name__}; sort them with the kernels of the same device")
    if rows.num_rows % max(segments.num_rows, 1):
        raise ValueError(f"{rows.num_rows} sorted rows are not those of a batch of {segments.num_rows} rows")
    block_rows = block_rows_for(rows)
    return Segments(rows.num_rows, tuple(_empty_pass(rows, one, block_rows) for one in segments.passes))


def _empty_pass(rows: DeviceRows, given: Pass, block_rows: int) -> Pass:
    if given.row_slots is None:
        raise ValueError("the pass has no slots of its rows; build its segments with block_rows")
    # Of each run of the batch an expert has one at the most.
    num_runs = min(rows.num_rows, most_runs(given) * rows.num_experts)
    num_tiles, device = most_tiles(rows.num_rows, num_runs, block_rows), rows.sources.device
    table = torch.empty((num_tiles, 4), dtype=torch.int64, device=device)
    scales = torch.empty(rows.num_rows, dtype=torch.float32, device=device)
    return Pass((), table, scales, block_rows, made_in_step=True)


def expert_segments_meta(rows: SortedRows, segments: Segments) -> Segments:
    """Return tensors without contents."""
    return empty_segments(rows, segments)


def expert_segments_reference(
    rows: SortedRows,  # of the batch that `segments` are of
    segments: Segments,  # their tables on the device
) -> Segments:
    """Cut the sorted rows into tiles in plain torch.

    A tile begins where the slot changes, and with every block of rows of an expert. The tiles of an expert
    lie together in the table, idle ones behind them: where they begin, counts tell, and no tile need wait.
    """
    made = empty_segments(rows, segments)
    assert isinstance(rows, DeviceRows)
    for given, one in zip(segments.passes, made.passes, strict=True):
        one.scales.copy_(given.scales[rows.sources])
        one.table.copy_(torch.tensor([0, 0, BASE_SLOT, 0]))
        assert given.row_slots is not None
        _fill(rows, one, given.row_slots[rows.sources].tolist(), most_runs(given))
    return made


def _fill(rows: DeviceRows, one: Pass, slots: list[int], num_runs: int) -> None:
    assert one.block_rows is not None
    starts, first_tile = rows.starts.tolist(), 0
    for expert, (start, end) in enumerate(pairwise(starts)):
        tile = first_tile
        cuts = [
            row
            for row in range(start, end)
            if row == start or slots[row] != slots[row - 1] or (row - start) % one.block_rows == 0
        ]
        for row, following in pairwise([*cuts, end]):
            if slots[row] != BASE_SLOT:
                one.table[tile] = torch.tensor([row, following, slots[row], expert])
                tile += 1
        first_tile += most_tiles(end - start, min(end - start, num_runs), one.block_rows)

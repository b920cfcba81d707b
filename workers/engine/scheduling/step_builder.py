"""Turns a schedule into the tensors of a step's two halves: rows, block tables, masks; then the sampling."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.linear.row_padding import num_padded_rows
from kernels.lora.segments import Segments, SlotScales, slots_of
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.core.step_input import (
    AttentionGroup,
    CarriedTokens,
    ForwardInput,
    PromptRows,
    SamplingInput,
    StepShape,
)
from workers.engine.kv.kv_cache import SCRATCH_BLOCK
from workers.engine.sampling.sampling_input import sampling_input
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.prompt_rows import prompt_rows
from workers.engine.scheduling.step_layout import DECODE_TILE_ROWS, StepLayout

MIN_ROWS = 4
"""Rows of the smallest step; the head's float32 products sum fewer in another order, whatever the dtype."""

_MIN_QUERY_BUCKET = 32
_MIN_KV_BUCKET = 16
_UNKNOWN_TOKEN = 0
"""Stands where the step before puts its token on the device."""

Ints = NDArray[np.int64]

_Run = tuple[int, SlotScales]
"""How many rows follow one another, and the slots of their adapters."""


class Tiling(NamedTuple):
    """How runs of LoRA are cut: not at all, for a CPU."""

    rows: int | None = None
    num_tiles: int = 0


class BuiltStep(NamedTuple):
    """The first half of a step, and whose rows are where."""

    forward: ForwardInput
    spans: list[Span]


class BuiltSampling(NamedTuple):
    """The second half of a step, and whose tokens and prompts it is about."""

    sampling: SamplingInput
    sampled: list[Span]  # in the order of the sampled rows
    prompted: list[SequenceState]  # whose prompts the sampling's `prompts` are about, one each


class StepBuilder:
    """Builds steps for one cache layout and vocabulary."""

    def __init__(
        self,
        *,
        block_size: int,
        num_kv_heads: int,
        vocab_size: int,
        dtype: torch.dtype,
        gathers_kv: bool = True,
        windows: tuple[int | None, ...] = (None,),
        layout: StepLayout | None = None,
    ) -> None:
        """`gathers_kv` is False if attention reads the cache in place and needs no groups.

        `windows` are the model's: how many positions a row sees, its own included; None for all. `layout` is
        what a GPU's steps are filled up to.
        """
        self._block_size = block_size
        self._num_kv_heads = num_kv_heads
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._gathers_kv = gathers_kv
        self._windows = windows
        self._heads = np.arange(num_kv_heads, dtype=np.int64)
        self._layout = layout
        self._latest_segments: tuple[tuple[list[_Run], Tiling], Segments] | None = None

    def build(self, schedule: Schedule) -> BuiltStep:
        """Lay out the scheduled rows, decode rows first, and by adapters within decode and prefill."""
        rows = sorted(schedule.rows, key=lambda row: (row.num_tokens > 1, slots_of(row.sequence.slots)))
        spans = _spans(rows)
        num_real = sum(row.num_tokens for row in rows)
        shape = self._shape(spans, num_real)
        num_tokens = self._num_padded(num_real) if shape is None else shape.num_tokens
        token_ids, positions, places = self._rows(spans, num_tokens)
        step = ForwardInput(
            num_tokens=num_tokens,
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            kv_write_rows=torch.from_numpy(self._write_rows(places) if self._gathers_kv else places[:0]),
            sequence_rows=_span_table(spans, num_real, shape),
            block_tables=_block_tables(spans, shape),
            fresh_blocks=_tensor(schedule.fresh_blocks) if schedule.fresh_blocks else None,
            groups=self._groups(spans, num_tokens, positions) if self._gathers_kv else (),
            segments=self._segments(
                [(span.num_rows, span.sequence.slots) for span in spans],
                num_tokens - num_real,
                Tiling() if shape is None else Tiling(shape.tile_rows, shape.num_tiles),
            ),
            carried=_carried(spans),
            shape=shape if shape is not None and shape.is_fixed else None,
        )
        return BuiltStep(step, spans)

    def build_sampling(self, spans: list[Span]) -> BuiltSampling:
        """Describe what is wanted of these rows' logits; all steps before theirs must be settled."""
        sampled = [span for span in spans if span.is_complete]
        asking = [span for span in spans if span.sequence.prompt_logprobs is not None]
        prompts = [(span.sequence, piece) for span in asking for piece in self._prompt_rows(span)]
        rows = [span.first_row + span.num_rows - 1 for span in sampled]
        num_padding = self._num_padded(len(rows)) - len(rows) if rows else 0
        sampling = sampling_input(
            [span.sequence for span in sampled],
            _tensor(rows + rows[-1:] * num_padding),
            self._vocab_size,
            segments=self._segments(
                [(1, span.sequence.slots) for span in sampled], num_padding, self._tiling_of_samples
            ),
            prompts=tuple(piece for _, piece in prompts),
        )
        return BuiltSampling(sampling, sampled, [sequence for sequence, _ in prompts])

    def _rows(self, spans: list[Span], num_tokens: int) -> tuple[Ints, Ints, Ints]:
        """Return token ids, positions and cache places (block * block_size + offset) of every row."""
        token_ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        size = self._block_size
        for sequence, _, _, num_rows, first in spans:
            table = sequence.block_table
            token_ids += sequence.token_ids[first : first + num_rows]
            if sequence.pending_place is not None:
                token_ids.append(_UNKNOWN_TOKEN)
            positions += range(first, first + num_rows)
            places += [table[at // size] * size + at % size for at in range(first, first + num_rows)]
        num_padding = num_tokens - len(token_ids)
        token_ids += [0] * num_padding
        positions += [0] * num_padding
        places += [SCRATCH_BLOCK * size] * num_padding
        return np.array(token_ids), np.array(positions), np.array(places)

    def _write_rows(self, places: Ints) -> Ints:
        blocks, offsets = np.divmod(places, self._block_size)
        heads = blocks[:, None] * self._num_kv_heads + self._heads
        return (heads * self._block_size + offsets[:, None]).ravel()

    def _groups(self, spans: list[Span], num_tokens: int, positions: Ints) -> tuple[AttentionGroup, ...]:
        groups: dict[tuple[int, int], list[Span]] = {}
        for span in spans:
            num_blocks = -(-(span.start + span.num_rows) // self._block_size)
            query_bucket = 1 if span.num_rows == 1 else _bucket(span.num_rows, _MIN_QUERY_BUCKET)
            groups.setdefault((query_bucket, _bucket(num_blocks, _MIN_KV_BUCKET)), []).append(span)
        return tuple(self._group(members, num_tokens, positions) for members in groups.values())

    def _group(self, spans: list[Span], num_tokens: int, positions: Ints) -> AttentionGroup:
        query_len = max(span.num_rows for span in spans)
        first_rows = np.array([span.first_row for span in spans])[:, None]
        num_rows = np.array([span.num_rows for span in spans])[:, None]
        offsets = np.arange(query_len)
        query_rows = first_rows + np.minimum(offsets, num_rows - 1)
        output_rows = np.where(offsets < num_rows, query_rows, num_tokens)
        query_positions = positions[query_rows]
        num_blocks = int(query_positions.max()) // self._block_size + 1
        return AttentionGroup(
            num_seqs=len(spans),
            query_len=query_len,
            query_rows=torch.from_numpy(query_rows.ravel()),
            output_rows=torch.from_numpy(output_rows.ravel()),
            kv_rows=torch.from_numpy(self._kv_rows(spans, num_blocks)),
            masks=tuple(self._mask(query_positions, num_blocks, window) for window in self._windows),
        )

    def _kv_rows(self, spans: list[Span], num_blocks: int) -> Ints:
        tables = np.full((len(spans), 1, num_blocks), SCRATCH_BLOCK)
        for index, span in enumerate(spans):
            table = span.sequence.block_table[:num_blocks]
            tables[index, 0, : len(table)] = table
        return (tables * self._num_kv_heads + self._heads[:, None]).ravel()

    def _mask(self, query_positions: Ints, num_blocks: int, window: int | None) -> Tensor:
        limits = torch.from_numpy(query_positions)[:, None, :, None]
        kv_positions = torch.arange(num_blocks * self._block_size)
        is_hidden = kv_positions > limits
        if window is not None:
            is_hidden |= kv_positions <= limits - window
        return torch.zeros(is_hidden.shape, dtype=self._dtype).masked_fill_(is_hidden, float("-inf"))

    def _shape(self, spans: list[Span], num_real: int) -> StepShape | None:
        if self._layout is None:
            return None
        longest = max(len(span.sequence.block_table) for span in spans)
        return self._layout.shape(num_real, len(spans), longest, _run_lengths(spans))

    def _segments(self, runs: list[_Run], num_padding: int, tiling: Tiling) -> Segments | None:
        """Return the segments of runs of rows, given by their lengths and slots; None if none has any.

        The latest are kept: a step that only decodes has those of its head, and of the step before as well.
        """
        if not any(slots for _, slots in runs):
            return None
        key = [*runs, (num_padding, ())], tiling
        if self._latest_segments is None or self._latest_segments[0] != key:
            made = Segments.from_runs(key[0], block_rows=tiling.rows, num_tiles=tiling.num_tiles)
            self._latest_segments = key, made
        return self._latest_segments[1]

    @property
    def _tiling_of_samples(self) -> Tiling:
        return Tiling() if self._layout is None else Tiling(DECODE_TILE_ROWS)

    def _prompt_rows(self, span: Span) -> list[PromptRows]:
        return prompt_rows(
            span,
            vocab_size=self._vocab_size,
            num_padded=self._num_padded,
            tile_rows=self._tiling_of_samples.rows,
        )

    def _num_padded(self, num_rows: int) -> int:
        """Return how many rows of a product to compute for so many; a GPU's steps have shapes instead."""
        return num_rows if self._layout is not None else max(MIN_ROWS, num_padded_rows(num_rows, self._dtype))


def _spans(rows: list[ScheduledRows]) -> list[Span]:
    spans, first_row = [], 0
    for sequence, num_tokens in rows:
        spans.append(Span(sequence, sequence.epoch, first_row, num_tokens, sequence.num_scheduled_tokens))
        first_row += num_tokens
    return spans


def _run_lengths(spans: list[Span]) -> list[int]:
    """Return the rows of each run that has the same adapters, in their order; those without any left out."""
    runs = groupby(spans, key=lambda span: slots_of(span.sequence.slots))
    return [sum(span.num_rows for span in run) for slots, run in runs if slots]


def _span_table(spans: list[Span], num_real: int, shape: StepShape | None) -> Tensor:
    rows = [(span.first_row, span.num_rows, span.start) for span in spans]
    if shape is not None:
        rows += [(num_real, 0, 0)] * (shape.num_seqs - len(rows))
    return torch.tensor(rows, dtype=torch.int32)


def _block_tables(spans: list[Span], shape: StepShape | None) -> Tensor:
    tables = [span.sequence.block_table for span in spans]
    size = (len(tables), max(map(len, tables))) if shape is None else (shape.num_seqs, shape.max_blocks)
    filled = np.full(size, SCRATCH_BLOCK, dtype=np.int32)
    for row, table in zip(filled, tables, strict=False):  # those that only fill up have no blocks
        row[: len(table)] = table
    return torch.from_numpy(filled)


def _carried(spans: list[Span]) -> CarriedTokens | None:
    """Return the rows whose token the step before, still in flight, chooses: the last of their sequences."""
    carried = [
        (span.first_row + span.num_rows - 1, place)
        for span in spans
        if (place := span.sequence.pending_place) is not None
    ]
    if not carried:
        return None
    return CarriedTokens(_tensor([row for row, _ in carried]), _tensor([place for _, place in carried]))


def _bucket(value: int, smallest: int) -> int:
    """Return the next power of two, at least `smallest`: padding within a bucket at most doubles the work."""
    return max(smallest, 1 << (value - 1).bit_length())


def _tensor(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)

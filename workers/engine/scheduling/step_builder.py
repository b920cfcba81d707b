"""Turns a schedule into the tensors of one step: rows in order, block tables, masks, sampling parameters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.linear.row_padding import num_padded_rows
from kernels.lora.segments import Segments
from workers.engine.core.sequence import Sequence
from workers.engine.core.step_input import AttentionGroup, PromptRows, SamplingInput, StepInput
from workers.engine.kv.kv_cache import SCRATCH_BLOCK
from workers.engine.sampling.sampling_input import sampling_input
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.prompt_rows import prompt_rows

MIN_ROWS = 4
"""Rows of the smallest step; the head's float32 products sum fewer in another order, whatever the dtype."""

_MIN_QUERY_BUCKET = 32
_MIN_KV_BUCKET = 16

Ints = NDArray[np.int64]


class BuiltStep(NamedTuple):
    """A step and the sequences whose next tokens it yields, in the order of its sampled rows."""

    step: StepInput
    sampled: list[Sequence]
    prompted: list[Sequence]  # whose prompts the step's `prompts` are about, one each


class _Span(NamedTuple):
    """One sequence's rows in the step."""

    sequence: Sequence
    first_row: int
    num_rows: int


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
    ) -> None:
        """`gathers_kv` is False where attention reads the cache in place and needs no groups.

        `windows` are the model's: how many positions a row sees, its own included; None for all.
        """
        self._block_size = block_size
        self._num_kv_heads = num_kv_heads
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._gathers_kv = gathers_kv
        self._windows = windows
        self._heads = np.arange(num_kv_heads, dtype=np.int64)

    def build(self, schedule: Schedule) -> BuiltStep:
        """Lay out the scheduled rows, decode rows first, and by adapters within decode and prefill."""
        rows = sorted(schedule.rows, key=lambda row: (row.num_tokens > 1, row.sequence.slots))
        spans = _spans(rows)
        num_real = sum(row.num_tokens for row in rows)
        num_tokens = self._num_padded(num_real)
        token_ids, positions, places = self._rows(spans, num_tokens)
        sampled = [span for span in spans if _is_complete(span)]
        prompts = [(span.sequence, piece) for span in spans for piece in self._prompt_rows(span)]
        step = StepInput(
            num_tokens=num_tokens,
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            write_rows=torch.from_numpy(self._write_rows(places)),
            spans=_span_table(spans),
            block_tables=_block_tables(spans),
            fresh_blocks=_tensor(schedule.fresh_blocks) if schedule.fresh_blocks else None,
            groups=self._groups(spans, num_tokens, positions) if self._gathers_kv else (),
            segments=_segments(spans, num_tokens - num_real),
            sampling=self._sampling(sampled) if sampled else None,
            head_segments=_segments(
                [span._replace(num_rows=1) for span in sampled],
                self._num_padded(len(sampled)) - len(sampled),
            ),
            prompts=tuple(piece for _, piece in prompts),
        )
        prompted = [sequence for sequence, _ in prompts]
        return BuiltStep(step, [span.sequence for span in sampled], prompted)

    def _rows(self, spans: list[_Span], num_tokens: int) -> tuple[Ints, Ints, Ints]:
        """Return token ids, positions and cache places (block * block_size + offset) of every row."""
        token_ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        size = self._block_size
        for sequence, _, num_rows in spans:
            first = sequence.num_computed_tokens
            table = sequence.block_table
            token_ids += sequence.token_ids[first : first + num_rows]
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

    def _groups(self, spans: list[_Span], num_tokens: int, positions: Ints) -> tuple[AttentionGroup, ...]:
        groups: dict[tuple[int, int], list[_Span]] = {}
        for span in spans:
            num_blocks = -(-(span.sequence.num_computed_tokens + span.num_rows) // self._block_size)
            query_bucket = 1 if span.num_rows == 1 else _bucket(span.num_rows, _MIN_QUERY_BUCKET)
            groups.setdefault((query_bucket, _bucket(num_blocks, _MIN_KV_BUCKET)), []).append(span)
        return tuple(self._group(members, num_tokens, positions) for members in groups.values())

    def _group(self, spans: list[_Span], num_tokens: int, positions: Ints) -> AttentionGroup:
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

    def _kv_rows(self, spans: list[_Span], num_blocks: int) -> Ints:
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

    def _prompt_rows(self, span: _Span) -> list[PromptRows]:
        return prompt_rows(*span, vocab_size=self._vocab_size, num_padded=self._num_padded)

    def _num_padded(self, num_rows: int) -> int:
        return max(MIN_ROWS, num_padded_rows(num_rows, self._dtype))

    def _sampling(self, sampled: list[_Span]) -> SamplingInput:
        rows = [span.first_row + span.num_rows - 1 for span in sampled]
        padded = _tensor(rows + rows[-1:] * (self._num_padded(len(rows)) - len(rows)))
        return sampling_input([span.sequence for span in sampled], padded, self._vocab_size)


def _spans(rows: list[ScheduledRows]) -> list[_Span]:
    spans, first_row = [], 0
    for sequence, num_tokens in rows:
        spans.append(_Span(sequence, first_row, num_tokens))
        first_row += num_tokens
    return spans


def _span_table(spans: list[_Span]) -> Tensor:
    rows = [(span.first_row, span.num_rows, span.sequence.num_computed_tokens) for span in spans]
    return torch.tensor(rows, dtype=torch.int32)


def _block_tables(spans: list[_Span]) -> Tensor:
    tables = [span.sequence.block_table for span in spans]
    filled = np.full((len(tables), max(map(len, tables))), SCRATCH_BLOCK, dtype=np.int32)
    for row, table in zip(filled, tables, strict=True):
        row[: len(table)] = table
    return torch.from_numpy(filled)


def _segments(spans: list[_Span], num_padding: int) -> Segments | None:
    if not any(span.sequence.slots for span in spans):
        return None
    runs = [(span.num_rows, span.sequence.slots) for span in spans]
    return Segments.from_runs([*runs, (num_padding, ())])


def _is_complete(span: _Span) -> bool:
    return span.sequence.num_uncomputed_tokens == span.num_rows


def _bucket(value: int, smallest: int) -> int:
    """Return the next power of two, at least `smallest`: padding within a bucket at most doubles the work."""
    return max(smallest, 1 << (value - 1).bit_length())


def _tensor(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)

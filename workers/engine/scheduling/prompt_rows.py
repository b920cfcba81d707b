"""Builds the part of a step that asks what the model makes of a prompt's own tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.lora.segments import Segments
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.core.step_input import PromptRows

MAX_LOGITS = 1 << 23
"""Logits computed at a time: 32 MiB as float32, whatever the vocabulary."""


def prompt_rows(
    span: Span,
    *,
    vocab_size: int,
    num_padded: Callable[[int], int],
    tile_rows: int | None,
) -> list[PromptRows]:
    """Return the rows of one sequence whose prompt log-probabilities are still missing, in bounded pieces.

    `num_padded` tells how many rows to compute for so many, `tile_rows` how runs of LoRA are cut.
    After a preemption the prompt is computed again, but not asked about again.
    """
    sequence, start = span.sequence, span.start
    if sequence.prompt_logprobs is None or sequence.params.prompt_logprobs is None:
        return []
    first = max(start, len(sequence.prompt_logprobs))
    stop = min(start + span.num_rows, sequence.num_prompt_tokens - 1)
    size = max(num_padded(1), MAX_LOGITS // vocab_size)
    pieces = [range(at, min(at + size, stop)) for at in range(first, stop, size)]
    return [_piece(sequence, piece, span.first_row - start, num_padded, tile_rows) for piece in pieces]


def _piece(
    sequence: SequenceState,
    positions: range,
    offset: int,
    num_padded: Callable[[int], int],
    tile_rows: int | None,
) -> PromptRows:
    rows = [position + offset for position in positions]
    num_padding = num_padded(len(rows)) - len(rows)
    assert sequence.params.prompt_logprobs is not None, "only sequences that ask have such rows"
    return PromptRows(
        num_rows=len(rows),
        rows=_ints(rows + rows[-1:] * num_padding),
        token_ids=_ints(sequence.token_ids[positions.start + 1 : positions.stop + 1]),
        num_likeliest=sequence.params.prompt_logprobs,
        segments=_segments(sequence, len(rows), num_padding, tile_rows),
    )


def _segments(
    sequence: SequenceState, num_rows: int, num_padding: int, tile_rows: int | None
) -> Segments | None:
    if not sequence.slots:
        return None
    return Segments.from_runs([(num_rows, sequence.slots), (num_padding, ())], block_rows=tile_rows)


def _ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)

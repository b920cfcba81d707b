"""How steps are filled up for a GPU: to one of a few shapes, so that captured ones can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.engine.core.step_input import StepShape

DECODE_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of steps that only decode; larger batches are rounded up to a multiple of the last one."""
MIXED_BUCKETS = (32, 64, 128, 256)
"""Rows of the smaller steps that hold prompts as well."""
DECODE_TILE_ROWS, MIXED_TILE_ROWS = 16, 64
"""Rows of a LoRA tile; a weight is read once for each tile."""
LORA_LEVELS = (2, 8, 32, 128)
"""Steps that decode are captured for so many adapters too, and for all there may be: idle tiles take time."""
_SMALL = 64
_ROW_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The shapes for one engine's limits."""

    max_num_seqs: int
    max_blocks: int  # of a sequence of full length
    max_loras: int  # 0: no adapters
    is_filled: bool = True  # False: steps keep the size they have, where nothing is compiled or captured

    def shape(
        self, num_tokens: int, num_seqs: int, max_blocks: int, run_lengths: Sequence[int] = ()
    ) -> StepShape:
        """Return what a step of so many rows, sequences and blocks of the longest one is filled up to.

        `run_lengths` are the rows that follow one another with the same adapters, of each run that has any.
        """
        if not self.is_filled:
            rows = DECODE_TILE_ROWS if num_tokens <= _SMALL else MIXED_TILE_ROWS
            return StepShape(num_tokens, num_seqs, max_blocks, 0, rows, is_fixed=False)
        if num_tokens == num_seqs:
            shapes = self._decode(_bucket(num_tokens, DECODE_BUCKETS))
            return _smallest_with(run_lengths, shapes)
        if num_tokens <= MIXED_BUCKETS[-1]:
            return _smallest_with(run_lengths, self._mixed(_bucket(num_tokens, MIXED_BUCKETS)))
        return self.large(num_tokens)

    def large(self, num_tokens: int) -> StepShape:
        """Return the shape of a step that is launched kernel by kernel.

        Sequences have few shapes here as well, or kernels would be compiled while serving.
        """
        num_tokens += -num_tokens % _ROW_MULTIPLE
        num_seqs = self._mixed_seqs(num_tokens)
        return StepShape(num_tokens, num_seqs, self.max_blocks, 0, MIXED_TILE_ROWS, is_fixed=False)

    def fixed_shapes(self) -> list[StepShape]:
        """Return the shapes that recur, the largest first."""
        largest = _bucket(self.max_num_seqs, DECODE_BUCKETS)
        buckets = {*DECODE_BUCKETS, *range(DECODE_BUCKETS[-1], largest + 1, DECODE_BUCKETS[-1])}
        decode = [self._decode(bucket) for bucket in buckets if bucket <= largest]
        mixed = [self._mixed(bucket) for bucket in MIXED_BUCKETS]
        return sorted({shape for shapes in decode + mixed for shape in shapes}, reverse=True)

    def _decode(self, bucket: int) -> list[StepShape]:
        """Return the shapes of steps of so many rows that decode, by their tiles: first the one with none."""
        levels = [level for level in LORA_LEVELS if 2 * level < self.max_loras] + [self.max_loras]
        tiles = [bucket // DECODE_TILE_ROWS + min(bucket, level) for level in levels if level]
        return [
            StepShape(bucket, bucket, self.max_blocks, num_tiles, DECODE_TILE_ROWS, is_fixed=True)
            for num_tiles in (0, *tiles)
        ]

    def _mixed(self, bucket: int) -> list[StepShape]:
        """Return the shapes of steps with prompts of so many rows: without tiles, and with the most."""
        rows = DECODE_TILE_ROWS if bucket <= _SMALL else MIXED_TILE_ROWS
        num_seqs = self._mixed_seqs(bucket)
        # Rows that decode are sorted by adapters, and so are those of prompts: two runs for each at most.
        tiles = [bucket // rows + min(num_seqs, 2 * self.max_loras)] if self.max_loras else []
        return [
            StepShape(bucket, num_seqs, self.max_blocks, num_tiles, rows, is_fixed=True)
            for num_tiles in (0, *tiles)
        ]

    def _mixed_seqs(self, num_rows: int) -> int:
        """Return the sequences of a step that holds prompts: fewer than rows, by which attention knows it."""
        return min(_bucket(self.max_num_seqs, DECODE_BUCKETS), num_rows - 1)


def _bucket(value: int, buckets: tuple[int, ...]) -> int:
    found = next((bucket for bucket in buckets if bucket >= value), None)
    return found if found is not None else value + -value % buckets[-1]


def _smallest_with(run_lengths: Sequence[int], shapes: Sequence[StepShape]) -> StepShape:
    """Return the first shape with tiles enough for some runs, or the last: none is captured with more."""
    for shape in shapes:
        if sum(-(-rows // shape.tile_rows) for rows in run_lengths) <= shape.num_tiles:
            return shape
    return shapes[-1]

"""How steps are filled up for a GPU: to one of a few shapes, so that captured ones can be replayed."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.core.step_input import StepShape

DECODE_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of steps that only decode; larger batches are rounded up to a multiple of the last one."""
MIXED_BUCKETS = (32, 64, 128, 256)
"""Rows of the smaller steps that hold prompts as well."""
DECODE_TILE_ROWS, MIXED_TILE_ROWS = 16, 64
"""Rows of a LoRA tile; a weight is read once for each tile."""
_SMALL = 64
_ROW_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The shapes for one engine's limits."""

    max_num_seqs: int
    max_blocks: int  # of a sequence of full length
    split_blocks: int  # as many as attention reads without splitting a sequence
    max_loras: int  # 0: no adapters
    is_filled: bool = True  # False: steps keep the size they have, where nothing is compiled or captured

    def shape(self, num_tokens: int, num_seqs: int, max_blocks: int) -> StepShape:
        """Return what a step of so many rows, sequences and blocks of the longest one is filled up to."""
        if not self.is_filled:
            rows = DECODE_TILE_ROWS if num_tokens <= _SMALL else MIXED_TILE_ROWS
            return StepShape(num_tokens, num_seqs, max_blocks, 0, rows, is_fixed=False)
        if num_tokens == num_seqs:
            return self._decode(_bucket(num_tokens, DECODE_BUCKETS))
        if num_tokens <= MIXED_BUCKETS[-1]:
            return self._mixed(_bucket(num_tokens, MIXED_BUCKETS))
        return self.large(num_tokens, max_blocks)

    def large(self, num_tokens: int, max_blocks: int) -> StepShape:
        """Return the shape of a step that is launched kernel by kernel.

        Sequences and blocks have few shapes here as well, or kernels would be compiled while serving.
        """
        num_seqs = _bucket(self.max_num_seqs, DECODE_BUCKETS)
        blocks = (
            min(self.max_blocks, self.split_blocks) if max_blocks <= self.split_blocks else self.max_blocks
        )
        num_tokens += -num_tokens % _ROW_MULTIPLE
        return StepShape(num_tokens, num_seqs, blocks, 0, MIXED_TILE_ROWS, is_fixed=False)

    def fixed_shapes(self) -> list[StepShape]:
        """Return the shapes that recur, the largest first."""
        largest = _bucket(self.max_num_seqs, DECODE_BUCKETS)
        decode = [self._decode(bucket) for bucket in {*DECODE_BUCKETS, largest} if bucket <= largest]
        mixed = [self._mixed(bucket) for bucket in MIXED_BUCKETS]
        return sorted(decode + mixed, reverse=True)

    def _decode(self, bucket: int) -> StepShape:
        tiles = self._num_tiles(bucket, bucket, DECODE_TILE_ROWS)
        return StepShape(bucket, bucket, self.max_blocks, tiles, DECODE_TILE_ROWS, is_fixed=True)

    def _mixed(self, bucket: int) -> StepShape:
        rows = DECODE_TILE_ROWS if bucket <= _SMALL else MIXED_TILE_ROWS
        num_seqs = _bucket(self.max_num_seqs, DECODE_BUCKETS)
        tiles = self._num_tiles(bucket, num_seqs, rows)
        return StepShape(bucket, num_seqs, self.max_blocks, tiles, rows, is_fixed=True)

    def _num_tiles(self, num_rows: int, num_seqs: int, tile_rows: int) -> int:
        """Return the most tiles that runs of rows can be cut into.

        Rows that decode are sorted by adapters, and so are those of prompts: a run for each at most.
        """
        num_runs = min(num_rows, num_seqs, 2 * self.max_loras)
        return num_rows // tile_rows + num_runs


def _bucket(value: int, buckets: tuple[int, ...]) -> int:
    found = next((bucket for bucket in buckets if bucket >= value), None)
    return found if found is not None else value + -value % buckets[-1]

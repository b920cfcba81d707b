"""What a program of attention holds at a time: tiles and splits, chosen from shapes and the card."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from kernels import cards

SPLIT_GRAIN = tl.constexpr(64)
"""Splits begin at multiples of it and are as long as multiples of it; every block_n divides it or is it."""
LEAST_SPLIT = tl.constexpr(128)
"""Tokens of a split, unless a row sees more than MOST_SPLITS of them."""
MOST_SPLITS = tl.constexpr(16)
"""Splits of a row: what bounds the memory for partial sums."""
ENOUGH_PROGRAMS = 1024
"""With so many programs, splits of a row take turns in fewer: most rows of large batches need only a few."""
LEAST_PROGRAMS_A_HEAD = 4

_LEAST_ROWS = 16  # what tl.dot multiplies at least
_HOPPER = 9  # the only one where 128 rows of a head of 256 have enough registers
_LARGE_SHARED_MEMORY = (_HOPPER, 10)  # major compute capabilities with 227 KB for a program, not 99 KB


@dataclass(frozen=True, slots=True)
class Tile:
    """Pairs of query and head, tokens beside them, warps, and stages of the loop over tokens.

    Triton shares the stages out to loads that wait for one another, the block table's and the tokens': the
    tokens of (num_stages - 1) // 2 rounds are under way beside those that are multiplied.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


DECODE = Tile(16, 64, 4, 3)
DECODE_WIDE = Tile(16, 32, 4, 3)
DECODE_LARGE = Tile(16, 32, 4, 5)
DECODE_LARGE_WIDE = Tile(16, 32, 4, 5)
DECODE_FLOAT32 = Tile(16, 32, 4, 1)
PROMPT = Tile(64, 32, 4, 3)
PROMPT_WIDE = Tile(64, 32, 8, 2)
PROMPT_LARGE = Tile(64, 64, 4, 3)
PROMPT_LARGE_WIDE = Tile(128, 32, 8, 3)
PROMPT_FLOAT32 = Tile(16, 32, 4, 1)
_WIDE = 256


def decode_tile(dtype: torch.dtype, block_d: int, group: int, device: torch.device) -> Tile:
    """Return the tile for one query of each of `group` heads."""
    is_wide = block_d >= _WIDE
    if dtype is torch.float32:
        tile = DECODE_FLOAT32
    elif cards.capability(device) in _LARGE_SHARED_MEMORY:
        tile = DECODE_LARGE_WIDE if is_wide else DECODE_LARGE
    else:
        tile = DECODE_WIDE if is_wide else DECODE
    return _with_rows_for(group, tile)


def prompt_tile(dtype: torch.dtype, block_d: int, group: int, device: torch.device) -> Tile:
    """Return the tile for queries that follow one another."""
    is_wide = block_d >= _WIDE
    if dtype is torch.float32:
        tile = PROMPT_FLOAT32
    elif is_wide:
        tile = PROMPT_LARGE_WIDE if cards.capability(device) == _HOPPER else PROMPT_WIDE
    else:
        tile = PROMPT_LARGE if cards.capability(device) in _LARGE_SHARED_MEMORY else PROMPT
    return _with_rows_for(group, tile)


def _with_rows_for(group: int, tile: Tile) -> Tile:
    rows = max(tile.block_m, _LEAST_ROWS, 1 << (group - 1).bit_length())
    return Tile(rows, tile.block_n, tile.num_warps, tile.num_stages)

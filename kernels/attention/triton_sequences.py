"""How programs of the attention kernels find the sequence that they work for."""

from __future__ import annotations

import triton
import triton.language as tl

SEQUENCE_COLUMNS = tl.constexpr(3)
"""Of `sequence_rows`: first row, number of rows, position of the first row."""


@triton.jit  # type: ignore[untyped-decorator]
def find_sequence(  # type: ignore[no-untyped-def]
    sequence_rows_ptr,  # [num_seqs, 3] int32, first rows ascending
    place,  # of a row (BLOCK_Q 1) or of a tile
    num_seqs,
    BLOCK_Q: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,  # at least num_seqs
):
    """Return the last sequence whose tiles of BLOCK_Q rows begin at or before a place; -1 if there is none.

    Sequence s begins at tile first_row // BLOCK_Q + s, or at its first row if tiles are rows: so no two share
    a tile, and rows // BLOCK_Q + num_seqs tiles are enough for all, however rows are shared out.
    """
    seqs = tl.arange(0, BLOCK_SEQS)
    exists = seqs < num_seqs
    starts = tl.load(sequence_rows_ptr + seqs * SEQUENCE_COLUMNS, mask=exists, other=0)
    if BLOCK_Q > 1:
        starts = starts // BLOCK_Q + seqs
    return tl.sum((exists & (starts <= place)).to(tl.int32), axis=0) - 1


@triton.jit  # type: ignore[untyped-decorator]
def find_row(sequence_rows_ptr, row, num_seqs, BLOCK_SEQS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a row's sequence and its position there, which is -1 if the row only fills the step up."""
    seq = find_sequence(sequence_rows_ptr, row, num_seqs, 1, BLOCK_SEQS)
    sequence_ptr = sequence_rows_ptr + tl.maximum(seq, 0) * SEQUENCE_COLUMNS
    offset = row - tl.load(sequence_ptr)
    is_mine = (seq >= 0) & (offset < tl.load(sequence_ptr + 1))
    return seq, tl.where(is_mine, tl.load(sequence_ptr + 2) + offset, -1)

"""A frozen weight of 4 or 8 bit codes, in the one layout that every quantisation format is brought into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns j and j + 16 of a span of 32 share a byte, so that a vector of bytes is two vectors of neighbours.
_SPAN = 32
IDENTITY_TABLE = torch.arange(16, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """W[row, columns[i]] = (value(code[row, i]) - zero) * scale, with the zero and the scale of the block.

    Blocks hold `block` weights each, counted along the rows: one runs on into the next row where
    `in_features` is not a multiple of it. A value is `table[code]` with 4 bits and the code itself with 8.
    """

    in_features: int
    codes: Tensor  # [out_features, row_bytes] uint8
    scales: Tensor  # [num_blocks] float32
    zeros: Tensor | None  # [num_blocks] uint8; None: 0
    table: Tensor | None  # [16] float32 with 4 bits, None with 8
    block: int
    columns: Tensor | None = None  # [in_features] int32; None: the codes' columns are those of W

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return self.codes.shape[0]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 if self.table is None else 4

    @property
    def nbytes(self) -> int:
        """Bytes held by this weight alone: an order of columns may be shared, the identity is."""
        table = None if self.table is IDENTITY_TABLE else self.table
        parts = (self.codes, self.scales, self.zeros, table)
        return sum(part.nbytes for part in parts if part is not None)

    def coded_rows(self, start: int, end: int) -> Tensor:  # [end - start, in_features] float32
        """Return rows of the weight with columns in the codes' order."""
        values = self._values(self.codes[start:end])
        positions = torch.arange(start * self.in_features, end * self.in_features)
        blocks = positions.div_(self.block, rounding_mode="floor")
        if self.zeros is not None:
            values = values - self.zeros[blocks].float().view_as(values)
        return values * self.scales[blocks].view_as(values)

    def dense(self) -> Tensor:  # [out_features, in_features] float32
        """Return the whole weight in its plain layout."""
        weight = self.coded_rows(0, self.out_features)
        if self.columns is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.columns.long(), weight)

    def _values(self, codes: Tensor) -> Tensor:
        if self.table is None:
            return codes.float()
        spans = codes.view(codes.shape[0], -1, 1, _SPAN // 2)
        pairs = torch.cat((spans & 15, spans >> 4), dim=2)
        return self.table[pairs.view(codes.shape[0], -1)[:, : self.in_features].long()]


def pack_codes(
    codes: Tensor,  # [out_features, in_features] uint8, below 16
) -> Tensor:  # [out_features, row_bytes] uint8
    """Put two 4 bit codes into each byte; rows are filled up to whole spans."""
    num_rows, num_columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -num_columns % _SPAN))
    spans = padded.view(num_rows, -1, 2, _SPAN // 2)
    return (spans[:, :, 0] | (spans[:, :, 1] << 4)).view(num_rows, -1).contiguous()

"""A frozen weight of 4 or 8 bit codes, in the one layout that every quantisation format is brought into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

SPAN = 32
"""Columns j and j + 16 of so many share a byte, so that a vector of bytes is two vectors of neighbours."""
IDENTITY_TABLE = torch.arange(16, dtype=torch.float32)
_TILE_WEIGHTS = 1 << 22
"""What is dequantised at a time: the positions of a whole matrix would take several times its memory."""


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
    def is_identity(self) -> bool:
        """Whether values are the codes themselves, by a table that all such weights of a device share."""
        return self.table is None or self.table is _identity_on(self.table.device)

    @property
    def nbytes(self) -> int:
        """Bytes held by this weight alone: an order of columns may be shared, the identity is."""
        table = None if self.is_identity else self.table
        parts = (self.codes, self.scales, self.zeros, table)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return it on a device."""
        parts = self.codes, self.scales, self.zeros, self.columns
        codes, scales, zeros, columns = (None if part is None else part.to(device) for part in parts)
        assert codes is not None
        assert scales is not None
        table = self.table
        if table is not None:
            table = _identity_on(codes.device) if self.is_identity else table.to(device)
        return replace(self, codes=codes, scales=scales, zeros=zeros, table=table, columns=columns)

    def coded_rows(self, start: int, end: int) -> Tensor:  # [end - start, in_features] float32
        """Return rows of the weight with columns in the codes' order."""
        values = self._values(self.codes[start:end])
        first, last = start * self.in_features, end * self.in_features
        positions = torch.arange(first, last, device=self.codes.device)
        blocks = positions.div_(self.block, rounding_mode="floor")
        if self.zeros is not None:
            values = values - self.zeros[blocks].float().view_as(values)
        return values * self.scales[blocks].view_as(values)

    def dense(self) -> Tensor:  # [out_features, in_features] float32
        """Return the whole weight in its plain layout."""
        tile = max(1, _TILE_WEIGHTS // self.in_features)
        weight = self.scales.new_empty(self.out_features, self.in_features)
        for start in range(0, self.out_features, tile):
            end = min(start + tile, self.out_features)
            weight[start:end] = self.coded_rows(start, end)
        if self.columns is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.columns.long(), weight)

    def _values(self, codes: Tensor) -> Tensor:
        if self.table is None:
            return codes.float()
        spans = codes.view(codes.shape[0], -1, 1, SPAN // 2)
        pairs = torch.cat((spans & 15, spans >> 4), dim=2)
        return self.table[pairs.view(codes.shape[0], -1)[:, : self.in_features].long()]


def pack_codes(
    codes: Tensor,  # [out_features, in_features] uint8, below 16
) -> Tensor:  # [out_features, row_bytes] uint8
    """Put two 4 bit codes into each byte; rows are filled up to whole spans."""
    num_rows, num_columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -num_columns % SPAN))
    spans = padded.view(num_rows, -1, 2, SPAN // 2)
    return (spans[:, :, 0] | (spans[:, :, 1] << 4)).view(num_rows, -1).contiguous()


def joined(parts: Sequence[QuantizedWeight]) -> tuple[QuantizedWeight, ...]:
    """Stack neighbours that one weight can be, so that one product serves them; the others stay apart."""
    stacks: list[list[QuantizedWeight]] = []
    for part in parts:
        if stacks and _continues(stacks[-1][-1], part):
            stacks[-1].append(part)
        else:
            stacks.append([part])
    return tuple(_stacked(stack) for stack in stacks)


def _continues(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    """Whether the second's blocks go on where the first's end, and mean the same."""
    pairs = (first.table, second.table), (first.columns, second.columns)
    return (
        first.block == second.block
        and first.out_features * first.in_features % first.block == 0
        and (first.zeros is None) == (second.zeros is None)
        and all(_same(one, other) for one, other in pairs)
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _stacked(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    first = parts[0]
    if len(parts) == 1:
        return first
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
    )


@cache
def _identity_on(device: torch.device) -> Tensor:
    return IDENTITY_TABLE if device.type == "cpu" else IDENTITY_TABLE.to(device)

"""What the kernels that read quantised weights have in common: codes become the numbers they stand for."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels import cards
from kernels.linear.quantized_weight import SPAN, QuantizedWeight
from kernels.linear.triton_look_up import look_up

PIECES = {4: (128, 64, SPAN), 8: (64, SPAN)}
"""Columns that are spread out at a time, by bits of a code: the first that lie in one block."""
MAGIC = tl.constexpr(0x4B000000)
"""2^23 in float32: its last bits count in ones, so that a small integer put there is added to it."""
MAGIC_VALUE = tl.constexpr(8388608.0)


class Coding(NamedTuple):
    """How codes are read, constant for a module; each is a kernel of its own."""

    bits: int
    block: int
    piece: int
    is_whole: bool  # no piece lies in two blocks
    has_table: bool
    has_zeros: bool
    permutes: bool  # looks codes up by byte permutations; Triton's interpreter reads the table instead

    @staticmethod
    def of(weight: QuantizedWeight) -> Coding:
        """Return a weight's, on the device where it lies."""
        is_row = weight.block == weight.in_features
        is_whole = is_row or (weight.in_features % weight.block == 0 and weight.block % SPAN == 0)
        fits = [piece for piece in PIECES[weight.bits] if is_row or not is_whole or weight.block % piece == 0]
        return Coding(
            weight.bits,
            weight.block,
            fits[0] if is_whole else SPAN,
            is_whole,
            has_table=not weight.is_identity,
            has_zeros=weight.zeros is not None,
            permutes=not weight.is_identity and cards.capability(weight.codes.device) > 0,
        )

    def within(self, turn: int) -> Coding:
        """Return it with pieces that are no larger than a turn."""
        return self._replace(piece=min(self.piece, turn))

    def constants(self) -> dict[str, int | bool]:
        """Return them as the kernels' constants."""
        return {
            "BITS": self.bits,
            "BLOCK": self.block,
            "PIECE": self.piece,
            "WHOLE": self.is_whole,
            "HAS_TABLE": self.has_table,
            "HAS_ZEROS": self.has_zeros,
            "PERMUTES": self.permutes,
        }


def tensors_of(weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes, scales, zeros and table; what a weight lacks is not read, and has another's address."""
    zeros = weight.codes if weight.zeros is None else weight.zeros
    return weight.codes, weight.scales, zeros, weight.scales if weight.table is None else weight.table


@triton.jit  # type: ignore[untyped-decorator]
def prefetch_codes(  # type: ignore[no-untyped-def]
    codes_ptr,  # [num_rows, row_bytes] uint8
    rows,
    num_rows,
    first,
    row_bytes,
    LINES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Have the second-level cache fetch LINES of 128 bytes of each row, from its byte `first` on."""
    if PDL:
        # No address may lie behind the codes.
        rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
        places = tl.minimum(first + tl.arange(0, LINES) * 128, row_bytes - 1)
        addresses = (codes_ptr + rows[:, None] * row_bytes + places[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [addresses],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit  # type: ignore[untyped-decorator]
def columns_of(at, half, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return where codes of a piece's bytes `at` stand in it: the lower ones (half 0) or the upper ones."""
    return at if BITS == 8 else at // 16 * 32 + half * 16 + at % 16


@triton.jit  # type: ignore[untyped-decorator]
def numbers(  # type: ignore[no-untyped-def]
    codes,
    words,
    table_ptr,
    BITS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    PERMUTES: tl.constexpr,
):
    """Return what bytes hold below and above: the table's values, or codes plus MAGIC_VALUE, in float32."""
    if PERMUTES:
        return look_up(codes, words)
    if BITS == 8:
        only = number(codes, table_ptr, HAS_TABLE)
        return only, only
    return number(codes & 15, table_ptr, HAS_TABLE), number(codes >> 4, table_ptr, HAS_TABLE)


@triton.jit  # type: ignore[untyped-decorator]
def number(codes, table_ptr, HAS_TABLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return what codes stand for, as `numbers` does."""
    if HAS_TABLE:
        return tl.load(table_ptr + codes.to(tl.int32))
    # Devices convert integers at a fraction of the rate at which they add.
    return (codes.to(tl.int32) | MAGIC).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def load_blocks(  # type: ignore[no-untyped-def]
    scales_ptr,  # [num_blocks] float32
    zeros_ptr,  # [num_blocks] uint8
    places,
    exists,
    HAS_TABLE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):
    """Return the scales of blocks, and what is taken off the `numbers` before they are scaled."""
    scales = tl.load(scales_ptr + places, mask=exists, other=0.0)
    zeros = tl.zeros_like(scales)
    if HAS_ZEROS:
        zeros = tl.load(zeros_ptr + places, mask=exists, other=0).to(tl.float32)
    if not HAS_TABLE:
        zeros += MAGIC_VALUE
    return scales, zeros

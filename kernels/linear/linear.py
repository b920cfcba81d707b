"""A frozen weight in the layout its device multiplies fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library
from kernels.linear.row_padding import padded_rows

# oneDNN picks its block sizes for about this many rows; other row counts are served from the same layout.
_TYPICAL_ROWS = 32
_WIDENED_FEATURES = 1024
"""Rows of a bfloat16 weight widened at a time: few calls, and at most some megabytes beside the weight."""


class LinearKernel(NamedTuple):
    """A layout for frozen weights, and the product that reads it."""

    name: str
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # called as `linear_reference`
    unpack: Callable[[Tensor], Tensor]
    is_packed: bool = False  # the weight lies otherwise than it is given


class Linear:
    """y = x W^T + bias, the weight in its kernel's layout.

    Whether a row's bits depend on the number of rows is up to the library (`docs/processors.md`). In torch
    2.13 they do not on AMD with AVX2, padded as in `row_padding`, nor in oneDNN's bfloat16 on AVX512-BF16;
    they do from 16 rows on with AMX, and in MKL's float32 on Intel with AVX512 (2026-11). In tiles
    (`row_tiles`) they never do.
    """

    def __init__(
        self,
        weight: Tensor,  # [out_features, in_features]
        bias: Tensor | None = None,  # [out_features]
        *,
        kernel: LinearKernel,
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.kernel = kernel
        self.bias = bias
        self._weight = kernel.pack(weight)
        self._multiply = kernel.multiply

    @property
    def nbytes(self) -> int:
        """Bytes held, the bias included."""
        weight_bytes = self.out_features * self.in_features * self._weight.dtype.itemsize
        return weight_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        return self._multiply(x, self._weight, self.bias)

    def dense(self) -> Tensor:  # [out_features, in_features]
        """Return the weight in its plain layout; a copy if it is packed."""
        return self.kernel.unpack(self._weight)


def linear_reference(
    x: Tensor,  # [num_rows, in_features]
    weight: Tensor,  # [out_features, in_features]
    bias: Tensor | None,  # [out_features]
) -> Tensor:  # [num_rows, out_features]
    """Return x W^T + bias in plain torch."""
    return F.linear(x, weight, bias)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


PLAIN = LinearKernel("F.linear", _as_it_is, linear_reference, _as_it_is)


def linear_compiled(level: library.Level) -> LinearKernel:
    """Return the CPU's compiled kernel: it reads bfloat16 weights where they lie and sums in float32."""
    return LinearKernel("C++", _as_it_is, library.operator("linear", level), _as_it_is)


def bfloat16_on_cpu() -> LinearKernel:
    """Return oneDNN's packed product if it has one, else the one that widens the weights as it goes."""
    if can_pack():
        return LinearKernel("oneDNN, packed", _pack, _multiply_packed, Tensor.to_dense, is_packed=True)
    return LinearKernel("widened", _as_it_is, _multiply_widened, _as_it_is)


@cache
def can_pack() -> bool:
    """Whether this torch has oneDNN's packed products and they agree with its plain ones.

    The operators are private, so they are tried, not trusted.
    """
    weight = torch.linspace(-1, 1, 64 * 32).view(64, 32).to(torch.bfloat16)
    x = torch.linspace(-2, 2, 8 * 32).view(8, 32).to(torch.bfloat16)
    bias = torch.linspace(-1, 1, 64).to(torch.bfloat16)
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
            return False
        packed = _multiply_packed(x, _pack(weight), bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = F.linear(x.float(), weight.float(), bias.float())
    return torch.allclose(packed.float(), expected, atol=0.02, rtol=0.02)


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001


def _multiply_packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # noqa: SLF001


def _multiply_widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Without AVX512-BF16 torch's own bfloat16 product took 5 times as long for 32 rows, 8 for 256 (AVX2,
    # torch 2.13, 2026-11).
    wide_x = padded_rows(x.float())
    out = x.new_empty(x.shape[0], weight.shape[0])
    for columns, piece, part in pieces_of(out, weight, bias):
        wide = F.linear(wide_x, piece.float(), None if part is None else part.float())
        columns.copy_(wide[: x.shape[0]])
    return out


def pieces_of(
    out: Tensor,  # [num_rows, out_features]
    weight: Tensor,  # [out_features, in_features]
    bias: Tensor | None,  # [out_features]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Cut a product along its outputs, so that a widened piece stays small; yields columns of out, too."""
    # Pieces of one size: the last of unequal ones might be too narrow for a product independent of the batch.
    num_pieces = -(-weight.shape[0] // _WIDENED_FEATURES)
    biases = (None,) * num_pieces if bias is None else bias.chunk(num_pieces)
    return zip(out.chunk(num_pieces, 1), weight.chunk(num_pieces), biases, strict=True)

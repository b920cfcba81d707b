"""Products in tiles of rows, of sizes in which a row was seen to have the same bits wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.linear.linear import LinearKernel, bfloat16_on_cpu, linear_reference, pieces_of
from kernels.linear.logits import HeadKernel
from kernels.linear.quantized_linear import quantized_linear_reference
from kernels.linear.quantized_weight import QuantizedWeight

_Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # called as `linear_reference`

TILE = 16
"""Rows of the tile that others are held against: with 16 rows AMX and AVX512 fill their registers."""
_OTHER_SIZES = (4, 8, 32, 64, 256)
_ALIGNMENT = 64
"""Bytes at whose multiples tiles begin: MKL promises equal bits for arrays that are aligned alike."""


class RowTiles:
    """x W^T + bias, by a library that chooses the order of its sums by the shape of a product.

    Sizes are tried, not trusted, when a shape of weights is first seen: with random numbers, rows must have
    the same bits at every place of a tile of 16. Other sizes are used beside it if they give rows these bits
    too. If 16 rows do not, rows are multiplied one by one, which needs no trial.
    """

    def __init__(self, multiply: _Product, pack: Callable[[Tensor], Tensor]) -> None:
        """`multiply` reads weights as `pack` lays them out."""
        self._multiply = multiply
        self._pack = pack
        self._sizes: dict[tuple[object, ...], tuple[int, ...]] = {}

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
        weight: Tensor,  # [out_features, in_features], packed
        bias: Tensor | None,  # [out_features]
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        sizes = self.sizes(weight, x.dtype, bias)
        tiles = cut(x.shape[0], sizes)
        parts = [self._multiply(_tile(x, *tile), weight, bias)[: x.shape[0] - tile[0]] for tile in tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else x.new_empty(0, weight.shape[0])

    def sizes(self, weight: Tensor, dtype: torch.dtype, bias: Tensor | None) -> tuple[int, ...]:
        """Return the sizes of tiles for weights of this shape, rising; 16, or 1 alone, is among them."""
        # Libraries also choose by the number of threads.
        key = (tuple(weight.shape), dtype, bias is None, torch.get_num_threads())
        if key not in self._sizes:
            self._sizes[key] = self._tried(tuple(weight.shape), dtype, has_bias=bias is not None)
        return self._sizes[key]

    def _tried(self, shape: tuple[int, ...], dtype: torch.dtype, *, has_bias: bool) -> tuple[int, ...]:
        # Numbers of our own: a product of an adapter's zeros would show nothing.
        numbers = torch.Generator().manual_seed(0)
        random = partial(torch.randn, generator=numbers)
        weight, bias = self._pack(random(shape).to(dtype)), random(shape[0]).to(dtype) if has_bias else None
        x = random(max(_OTHER_SIZES), shape[1]).to(dtype)
        first = self._multiply(x[:TILE], weight, bias)
        rolls = range(1, TILE)
        if not all(
            torch.equal(self._multiply(x[:TILE].roll(n, 0), weight, bias), first.roll(n, 0)) for n in rolls
        ):
            return (1,)
        tiled = torch.cat([self._multiply(rows, weight, bias) for rows in x.chunk(len(x) // TILE)])
        others = [n for n in _OTHER_SIZES if self._gives(x, tiled, weight, bias, n)]
        return tuple(sorted((TILE, *others)))

    def _gives(self, x: Tensor, tiled: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> bool:
        """Whether tiles of this size give all rows the bits that `tiled` has."""
        # Large tiles have each row at one place only: several rows at each, all of which must agree.
        starts = range(0, min(len(x), 4 * size), size)
        return all(
            torch.equal(self._multiply(_tile(x, n, size), weight, bias), tiled[n : n + size]) for n in starts
        )


def cut(num_rows: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield each tile's first row and size; the last may reach beyond the rows."""
    start = 0
    while start < num_rows:
        left = num_rows - start
        # Padding costs less than many small products, as long as there is little of it.
        padded = next((size for size in sizes if left <= size <= TILE), None)
        size = padded or max(size for size in sizes if size <= left)
        yield start, size
        start += size


def _tile(x: Tensor, start: int, size: int) -> Tensor:  # [size, in_features]
    rows = x[start : start + size]
    if rows.shape[0] < size:
        return F.pad(rows, (0, 0, 0, size - rows.shape[0]))
    return rows if rows.is_contiguous() and rows.data_ptr() % _ALIGNMENT == 0 else rows.clone()


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


class FloatTiles:
    """x W^T + bias with products and sums in float32, the weights widened and multiplied in pieces."""

    def __init__(self) -> None:
        self._tiles = RowTiles(linear_reference, _as_it_is)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute `linear_reference`; the result has the dtype of x."""
        wide_x, out = x.float(), x.new_empty(x.shape[0], weight.shape[0])
        for columns, piece, part in pieces_of(out, weight, bias):
            columns.copy_(self._tiles(wide_x, piece.float(), None if part is None else part.float()))
        return out


def linear_in_tiles(dtype: torch.dtype) -> LinearKernel:
    """Return the product of frozen weights in tiles: oneDNN's packed one if there is one for this dtype."""
    if dtype is torch.bfloat16 and (kernel := bfloat16_on_cpu()).is_packed:
        tiles = RowTiles(kernel.multiply, kernel.pack)
        return LinearKernel(f"{kernel.name}, in tiles", kernel.pack, tiles, kernel.unpack, is_packed=True)
    return LinearKernel("F.linear, in tiles", _as_it_is, FloatTiles(), _as_it_is)


def logits_in_tiles() -> HeadKernel:
    """Return the head's product in tiles; it gets a float32 copy of the head."""
    multiply = FloatTiles()
    return HeadKernel(torch.float32, lambda x, weight: multiply(x.float(), weight, None))


def quantized_linear_in_tiles() -> Callable[[Tensor, int, Tensor, QuantizedWeight, Tensor | None], None]:
    """Return `quantized_linear_reference` with its products in tiles."""
    return partial(quantized_linear_reference, multiply=FloatTiles())

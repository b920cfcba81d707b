"""A frozen linear module whose weights stay quantised: they are spread out a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.linear.linear import Linear, linear_reference
from kernels.linear.quantized_weight import QuantizedWeight

_TILE_BYTES = 1 << 20
"""What plain torch spreads out at once."""


QuantizedMultiply = Callable[[Tensor, int, Tensor, QuantizedWeight, Tensor | None], None]
"""Called as `quantized_linear_reference`."""


class QuantizedLinear:
    """y = x W^T + bias, W being parts stacked along the outputs; products and sums are in float32.

    Every weight is rounded to the dtype of x before it multiplies, as if the base had been dequantised into
    that dtype. Compiled, a row's result does not depend on the number of rows; plain torch is as `Linear`.
    """

    def __init__(
        self, parts: Sequence[QuantizedWeight], bias: Tensor | None = None, *, multiply: QuantizedMultiply
    ) -> None:
        """`bias` is [out_features], in the dtype of x."""
        self._multiply = multiply
        self._parts = _sharing_columns(parts)
        self.in_features = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)
        self.bias = bias

    @property
    def nbytes(self) -> int:
        """Bytes held, the bias included."""
        orders = {id(part.columns): part.columns.nbytes for part in self._parts if part.columns is not None}
        weights = sum(part.nbytes for part in self._parts)
        return weights + sum(orders.values()) + (0 if self.bias is None else self.bias.nbytes)

    def __call__(
        self,
        x: Tensor,  # [num_rows, in_features]
    ) -> Tensor:  # [num_rows, out_features]
        """Multiply."""
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x is {tuple(x.shape)}; this module needs [num_rows, {self.in_features}]")
        out = x.new_empty((x.shape[0], self.out_features))
        first, columns, ordered = 0, None, x
        for part in self._parts:
            if part.columns is not columns:
                columns = part.columns
                ordered = x if columns is None else x.index_select(1, columns)
            bias = None if self.bias is None else self.bias[first : first + part.out_features]
            self._multiply(out, first, ordered, part, bias)
            first += part.out_features
        return out

    def dense(self) -> Tensor:  # [out_features, in_features] float32
        """Return the weight dequantised, unrounded."""
        return torch.cat([part.dense() for part in self._parts])


def _sharing_columns(parts: Sequence[QuantizedWeight]) -> tuple[QuantizedWeight, ...]:
    """Let parts with their columns in the same order have one tensor of it, so that x is gathered once."""
    shared = list(parts[:1])
    for part in parts[1:]:
        last = shared[-1].columns
        is_same = last is not None and part.columns is not None and torch.equal(last, part.columns)
        shared.append(replace(part, columns=last) if is_same else part)
    return tuple(shared)


AnyLinear = Linear | QuantizedLinear


def quantized_linear_compiled(level: library.Level) -> QuantizedMultiply:
    """Return the CPU's compiled kernel."""
    operator = library.operator("quantized_linear", level)

    def multiply(out: Tensor, first: int, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
        codes = weight.codes, weight.scales, weight.zeros, weight.table
        operator(out, first, x.contiguous(), *codes, bias, weight.block)

    return multiply


def quantized_linear_meta(
    out: Tensor, first: int, x: Tensor, weight: QuantizedWeight, bias: Tensor | None
) -> None:
    """Check shapes as the kernels do, for tensors without contents."""
    fits = x.shape == (out.shape[0], weight.in_features) and first + weight.out_features <= out.shape[1]
    if not fits or (bias is not None and bias.shape != (weight.out_features,)):
        raise ValueError(
            f"x is {tuple(x.shape)} and out {tuple(out.shape)} from column {first} on; the weight is "
            f"[{weight.out_features}, {weight.in_features}]"
        )


def quantized_linear_reference(
    out: Tensor,  # [num_rows, all out_features], columns `first` and on are written
    first: int,
    x: Tensor,  # [num_rows, in_features], columns in the codes' order
    weight: QuantizedWeight,
    bias: Tensor | None,  # [out_features]
    *,
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = linear_reference,
) -> None:
    """Multiply in plain torch, a tile of the weight's rows at a time."""
    tile = max(1, _TILE_BYTES // (4 * weight.in_features))
    for start in range(0, weight.out_features, tile):
        end = min(start + tile, weight.out_features)
        rows = weight.coded_rows(start, end).to(x.dtype)
        part = None if bias is None else bias[start:end]
        out[:, first + start : first + end] = multiply(x, rows, part)

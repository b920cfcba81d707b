"""One linear module of every expert, the weights in one tensor: a single product over all sorted rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.experts.sort_by_expert import DeviceRows, SortedRows
from kernels.linear.linear import Linear, LinearKernel


class GroupedMultiply(Protocol):
    """Called as `grouped_linear_reference`."""

    def __call__(
        self, x: Tensor, weight: Tensor, rows: SortedRows, gathers: bool, bias: Tensor | None = None
    ) -> Tensor:
        """Multiply."""
        ...


class StackedLinear:
    """y = W_e x + bias_e for rows sorted by expert e."""

    def __init__(
        self,
        weight: Tensor,  # [num_experts, out_features, in_features]
        bias: Tensor | None = None,  # [num_experts, out_features]
        *,
        kernel: LinearKernel,
        multiply: GroupedMultiply,
    ) -> None:
        """`kernel` multiplies with one expert's weight, which must lie as it is given."""
        self._weight = weight
        self._bias = bias
        self._kernel = kernel
        self._multiply = multiply

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __len__(self) -> int:
        return self._weight.shape[0]

    def __getitem__(self, expert: int) -> Linear:
        bias = None if self._bias is None else self._bias[expert]
        return Linear(self._weight[expert], bias, kernel=self._kernel)

    def __iter__(self) -> Iterator[Linear]:
        return (self[expert] for expert in range(len(self)))

    def __call__(
        self,
        x: Tensor,  # [num_sorted_rows, in_features], or with `gathers` [num_rows, in_features]
        rows: SortedRows,
        *,
        gathers: bool,
    ) -> Tensor:  # [num_sorted_rows, out_features]
        """Multiply; `gathers` is whether x has the rows of the batch, not the sorted ones."""
        return self._multiply(x, self._weight, rows, gathers, self._bias)


def grouped_linear_reference(
    x: Tensor,  # [num_sorted_rows, in_features], or with `gathers` [num_rows, in_features]
    weight: Tensor,  # [num_experts, out_features, in_features]
    rows: SortedRows,
    gathers: bool,
    bias: Tensor | None = None,  # [num_experts, out_features]
) -> Tensor:  # [num_sorted_rows, out_features]
    """Return each sorted row's product with its expert's weight in plain torch, tile by tile."""
    out, device_rows = empty_product(x, weight, rows, gathers, bias)
    if gathers:
        x = x[rows.sources]
    for start, end, expert in device_rows.tiles.tolist():
        out[start:end] = F.linear(x[start:end], weight[expert], None if bias is None else bias[expert])
    return out


def grouped_linear_meta(
    x: Tensor, weight: Tensor, rows: SortedRows, gathers: bool, bias: Tensor | None = None
) -> Tensor:
    """Return a tensor without contents."""
    return empty_product(x, weight, rows, gathers, bias)[0]


def empty_product(
    x: Tensor, weight: Tensor, rows: SortedRows, gathers: bool, bias: Tensor | None
) -> tuple[Tensor, DeviceRows]:
    """Return the product, to be filled, and the rows, after a check; ValueError has the values."""
    if not isinstance(rows, DeviceRows):
        raise TypeError(f"rows are {type(rows).__name__}; sort them with the kernels of the same device")
    num_rows = x.shape[0] if gathers else rows.num_rows
    if weight.dim() != 3 or weight.shape[0] != rows.num_experts or not weight.is_contiguous():
        raise ValueError(
            f"the weight is {tuple(weight.shape)} with strides {weight.stride()}; "
            f"it must be a contiguous stack of {rows.num_experts} matrices"
        )
    if tuple(x.shape) != (num_rows, weight.shape[2]) or not x.is_contiguous():
        raise ValueError(
            f"x is {tuple(x.shape)} with strides {x.stride()}; it must be a contiguous matrix of {num_rows} "
            f"rows and {weight.shape[2]} columns"
        )
    if bias is not None and (bias.shape != weight.shape[:2] or not bias.is_contiguous()):
        raise ValueError(
            f"the bias is {tuple(bias.shape)} with strides {bias.stride()}; it must be contiguous "
            f"{tuple(weight.shape[:2])}"
        )
    if x.dtype is not weight.dtype or not x.device == weight.device == rows.tiles.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, the weight {weight.dtype} on {weight.device}, and the rows are "
            f"on {rows.tiles.device}; they must agree"
        )
    out = torch.empty((rows.num_rows, weight.shape[1]), dtype=x.dtype, device=x.device)
    return out, rows

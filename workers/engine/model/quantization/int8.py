"""Signed int8 rows with a scale each, in the kernels' layout."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight

_ZERO = 128


def int8_weight(
    codes: Tensor,  # [out_features, in_features] int8
    scales: Tensor,  # [out_features] float32
) -> QuantizedWeight:
    """Return the weight codes[row] * scales[row]."""
    num_rows, num_columns = codes.shape
    return QuantizedWeight(
        in_features=num_columns,
        codes=codes.view(torch.uint8) ^ _ZERO,  # the same as adding 128
        scales=scales.contiguous(),
        zeros=torch.full((num_rows,), _ZERO, dtype=torch.uint8),
        table=None,
        block=num_columns,
    )

"""Add a layer's result to the residual stream and norm the sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library


def add_rms_norm(
    residual: Tensor,  # [num_rows, width], changed in place
    delta: Tensor | None,  # [num_rows, width]; None: nothing to add
    weight: Tensor,  # [width] float32
    eps: float,
) -> Tensor:  # [num_rows, width]
    """Compute residual += delta; return residual / sqrt(mean(residual^2) + eps) * weight.

    Source: Zhang and Sennrich, 2019.
    """
    if library.serves(residual):
        return torch.ops.lorayard.add_rms_norm.default(residual, delta, weight, eps)
    return add_rms_norm_reference(residual, delta, weight, eps)


def add_rms_norm_reference(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_rms_norm` in plain torch."""
    if delta is not None:
        residual += delta
    return F.rms_norm(residual.float(), (residual.shape[-1],), weight, eps).to(residual.dtype)

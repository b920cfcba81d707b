"""Add a layer's result to the residual stream and norm the sum."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library

AddRMSNorm = Callable[[Tensor, Tensor | None, Tensor, float], Tensor]
"""Called as `add_rms_norm_reference`."""


def add_rms_norm_compiled(level: library.Level) -> AddRMSNorm:
    """Return the CPU's compiled kernel."""
    return library.operator("add_rms_norm", level)


def add_rms_norm_reference(
    residual: Tensor,  # [num_rows, width], changed in place
    delta: Tensor | None,  # [num_rows, width]; None: nothing to add
    weight: Tensor,  # [width] float32
    eps: float,
) -> Tensor:  # [num_rows, width]
    """Compute residual += delta; return residual / sqrt(mean(residual^2) + eps) * weight.

    Source: Zhang and Sennrich, 2019.
    """
    if delta is not None:
        residual += delta
    return F.rms_norm(residual.float(), (residual.shape[-1],), weight, eps).to(residual.dtype)

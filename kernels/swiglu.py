"""The gate of a Llama MLP: silu of one half of the columns times the other half."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library


def swiglu(
    gate_up: Tensor,  # [num_rows, 2 * width]
) -> Tensor:  # [num_rows, width]
    """Return silu(gate) * up (Shazeer, 2020)."""
    if library.serves(gate_up):
        return torch.ops.lorayard.swiglu.default(gate_up)
    return swiglu_reference(gate_up)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """Compute `swiglu` in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)

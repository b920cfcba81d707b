"""The gate of a Gemma MLP: gelu of one half of the columns times the other half."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library


def geglu(
    gate_up: Tensor,  # [num_rows, 2 * width]
) -> Tensor:  # [num_rows, width]
    """Return gelu(gate) * up, gelu in its tanh form (Shazeer, 2020)."""
    if library.serves(gate_up):
        return torch.ops.lorayard.geglu.default(gate_up)
    return geglu_reference(gate_up)


def geglu_reference(gate_up: Tensor) -> Tensor:
    """Compute `geglu` in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)

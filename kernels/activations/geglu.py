"""The gate of a Gemma MLP: gelu of one half of the columns times the other half."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kernels.activations.swiglu import Gate
from kernels.cpu import library


def geglu_compiled(level: library.Level) -> Gate:
    """Return the CPU's compiled kernel."""
    return library.operator("geglu", level)


def geglu_reference(
    gate_up: Tensor,  # [num_rows, 2 * width]
) -> Tensor:  # [num_rows, width]
    """Return gelu(gate) * up, gelu in its tanh form (Shazeer, 2020)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)

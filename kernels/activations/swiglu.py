"""The gate of a Llama MLP: silu of one half of the columns times the other half."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library

Gate = Callable[[Tensor], Tensor]
"""Called as `swiglu_reference`."""


def swiglu_compiled(level: library.Level) -> Gate:
    """Return the CPU's compiled kernel."""
    return library.operator("swiglu", level)


def swiglu_reference(
    gate_up: Tensor,  # [num_rows, 2 * width]
) -> Tensor:  # [num_rows, width]
    """Return silu(gate) * up (Shazeer, 2020)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)

"""The gate of a GPT-OSS expert: gate and up in turns, both clamped, up shifted by one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.cpu import library


class ClampedGate(Protocol):
    """Called as `clamped_swiglu_reference`."""

    def __call__(self, gate_up: Tensor, alpha: float, limit: float) -> Tensor:
        """Gate."""
        ...


def clamped_swiglu_compiled(level: library.Level) -> ClampedGate:
    """Return the CPU's compiled kernel."""
    return library.operator("clamped_swiglu", level)


def clamped_swiglu_reference(
    gate_up: Tensor,  # [num_rows, 2 * width], columns gate 0, up 0, gate 1, up 1, ...
    alpha: float,
    limit: float,  # positive
) -> Tensor:  # [num_rows, width]
    """Return gate sigmoid(alpha gate) (up + 1), gate at most limit, up within it (OpenAI, 2025)."""
    pairs = gate_up if gate_up.dtype is torch.float64 else gate_up.float()
    gate, up = pairs[:, ::2].clamp(max=limit), pairs[:, 1::2].clamp(-limit, limit)
    return (gate * torch.sigmoid(alpha * gate) * (up + 1)).to(gate_up.dtype)

"""The decoder's small operations in plain torch, tensors in and tensors out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(
    x: Tensor,  # [num_tokens, hidden_size]
    weight: Tensor,  # [hidden_size]
    eps: float,
) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019)."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def swiglu(
    gate_up: Tensor,  # [num_tokens, 2 * intermediate_size]
) -> Tensor:
    """Return silu(gate) * up (Shazeer, 2020), [num_tokens, intermediate_size]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class RotaryTable:
    """Cosines and signed sines per position (Su et al., 2021), in the half-split layout of Llama."""

    def __init__(self, *, head_dim: int, theta: float, max_positions: int, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        angles = torch.outer(torch.arange(max_positions).float(), 1.0 / theta**exponents)
        self._cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(dtype)
        # The first half meets the second one negated, so the sign lives in the table.
        self._sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(dtype)

    def rows(
        self,
        positions: Tensor,  # [num_tokens] int64
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines, [num_tokens, 1, head_dim] each, to be used by every layer."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(
    x: Tensor,  # [num_tokens, num_heads, head_dim]
    cos: Tensor,  # [num_tokens, 1, head_dim]
    sin: Tensor,  # [num_tokens, 1, head_dim]
) -> Tensor:
    """Return x turned by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)

"""Rotary position embeddings, tensors in and tensors out."""

from __future__ import annotations

import torch
from torch import Tensor


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
        """Return cosines and signed sines, [num_tokens, head_dim] each, to be used by every layer."""
        return self._cos[positions], self._sin[positions]


def rotate(
    x: Tensor,  # [num_tokens, num_heads, head_dim]
    cos: Tensor,  # [num_tokens, 1, head_dim]
    sin: Tensor,  # [num_tokens, 1, head_dim]
) -> Tensor:
    """Return x turned by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)

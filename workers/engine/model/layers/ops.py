"""Embeddings of tokens and of positions, tensors in and tensors out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.model.rope import Rope


class Rotation(NamedTuple):
    """The angles of a step's rows."""

    cos: Tensor  # [num_tokens, rotary_dim]
    sin: Tensor  # [num_tokens, rotary_dim], the first half negated


class RotaryTable:
    """Cosines and signed sines per position (Su et al., 2021), in the half-split layout of Llama."""

    def __init__(
        self,
        rope: Rope,
        *,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        rotates: bool = True,
    ) -> None:
        """Without `rotates` every angle is zero: kernels need not know of layers that rotate nothing."""
        angles, scaling = rope.angles(max_positions), rope.attention_scaling
        if not rotates:
            angles, scaling = torch.zeros_like(angles), 1.0
        cos, sin = angles.cos() * scaling, angles.sin() * scaling
        self._cos = torch.cat((cos, cos), dim=-1).to(device=device, dtype=dtype)
        # The first half meets the second one negated, so the sign lives in the table.
        self._sin = torch.cat((-sin, sin), dim=-1).to(device=device, dtype=dtype)

    def rows(
        self,
        positions: Tensor,  # [num_tokens] int64
    ) -> Rotation:
        """Return cosines and signed sines, to be used by every layer."""
        return Rotation(self._cos[positions], self._sin[positions])


def rotate(
    x: Tensor,  # [num_tokens, num_heads, head_dim]
    rotation: Rotation,
) -> Tensor:
    """Return x with its first rotary_dim columns turned by its position's angles."""
    cos, sin = rotation.cos.unsqueeze(1), rotation.sin.unsqueeze(1)
    turned, rest = x.tensor_split((cos.shape[-1],), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = torch.addcmul(turned * cos, torch.cat((second, first), dim=-1), sin)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def look_up_shard(
    table: Tensor,  # [num_rows, width], the rows of tokens from `first_id` on
    token_ids: Tensor,  # [num_tokens] int64
    first_id: int,
) -> Tensor:  # [num_tokens, width]
    """Return each token's row; zeros for tokens whose rows are on another rank."""
    rows = token_ids - first_id
    is_here = (rows >= 0) & (rows < table.shape[0])
    return table[rows.clamp(0, table.shape[0] - 1)] * is_here.unsqueeze(1)

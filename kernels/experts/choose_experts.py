"""The router's choice: the likeliest experts of every row, and their shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """The experts of each row, the likeliest first."""

    shares: Tensor  # [num_rows, num_chosen] float32
    chosen: Tensor  # [num_rows, num_chosen] int64, none twice in a row


ChooseExperts = Callable[[Tensor, int, bool], Choice]
"""Called as `choose_experts_reference`. Which of equally likely experts come first is up to it."""


def choose_experts_reference(
    logits: Tensor,  # [num_rows, num_experts]
    num_chosen: int,
    normalizes: bool,
) -> Choice:
    """Return the `num_chosen` largest of the softmax in float32; `normalizes` makes them sum to one."""
    shares, chosen = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(num_chosen, dim=-1)
    if normalizes:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return Choice(shares, chosen)

"""Draw one token per row from what min-p, top-k and top-p leave of its distribution."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Draw(Protocol):
    """Draws as `draw_reference` does, which tells the rule."""

    def __call__(
        self,
        logits: Tensor,  # [num_rows, vocab_size] float32, contiguous
        temperatures: Tensor,  # [num_rows] float32, 0 = the row is not drawn
        top_ks: Tensor,  # [num_rows] int64, at least 1; vocab_size = no limit
        top_ps: Tensor,  # [num_rows] float64, above 0; 1 = no limit
        min_ps: Tensor | None,  # [num_rows] float32, at most 1; 0 = no limit
        uniforms: Tensor,  # [num_rows] float64 in [0, 1)
        largest: Tensor | None = None,  # [num_rows] float32, each row's largest logit; None: found here
        /,
    ) -> Tensor:  # [num_rows] int64, all of them inside the vocabulary
        """Return a token for every row; rows at temperature 0 or without a finite maximum get any."""
        ...


def draw_reference(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    uniforms: Tensor,
    largest: Tensor | None = None,
) -> Tensor:
    """Compute w = exp((logit - largest) / temperature) and draw a token by what is left of it.

    The token is the first in vocabulary order up to which lies more than uniform * mass of what is left.
    """
    best = logits.amax(dim=-1) if largest is None else largest
    weights = weights_left(logits, temperatures, top_ks, top_ps, min_ps, best)
    through = weights.cumsum(dim=-1)
    picks = (through <= (uniforms * through[:, -1]).unsqueeze(1)).sum(dim=-1)
    return picks.where((temperatures > 0) & torch.isfinite(best), 0)


def weights_left(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    largest: Tensor,
) -> Tensor:  # [num_rows, vocab_size] float64
    """Compute w in float64, 0 where a limit takes the token away.

    Tokens are ranked by logit, equal ones in vocabulary order. Those with w < min-p go; of the rest the first
    k stay; of these, the ones before which lies less than p of their mass.
    """
    weights = ((logits.double() - largest.double().unsqueeze(1)) / temperatures.double().unsqueeze(1)).exp()
    if min_ps is not None:
        weights[weights < min_ps.double().unsqueeze(1)] = 0.0
    ranked = logits.argsort(dim=-1, descending=True, stable=True)
    falling = weights.gather(1, ranked)
    falling[torch.arange(logits.shape[1]) >= top_ks.unsqueeze(1)] = 0.0
    mass_before = falling.cumsum(dim=-1) - falling
    falling[mass_before >= (top_ps * falling.sum(dim=-1)).unsqueeze(1)] = 0.0
    return torch.zeros_like(weights).scatter(1, ranked, falling)


def draw_meta(logits: Tensor, *_: Tensor | None) -> Tensor:
    """Return the shape of a result."""
    return torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)

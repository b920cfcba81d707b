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

    Tokens are ranked by logit, equal ones in vocabulary order. Those with w < min-p go; of the rest the first
    k stay; of these, the ones before which lies less than p of their mass. The token is the first in
    vocabulary order up to which lies more than uniform * mass of what stays.
    """
    chosen = torch.zeros(logits.shape[0], dtype=torch.int64)
    best = (logits.amax(dim=-1) if largest is None else largest).double()
    for row, row_logits in enumerate(logits.double()):
        if temperatures[row] == 0 or not torch.isfinite(best[row]):
            continue
        weights = ((row_logits - best[row]) / temperatures[row].double()).exp()
        if min_ps is not None:
            weights[weights < min_ps[row].double()] = 0.0
        ranked = row_logits.argsort(descending=True, stable=True)
        weights[ranked[int(top_ks[row]) :]] = 0.0
        mass_before = weights[ranked].cumsum(0) - weights[ranked]
        weights[ranked[mass_before >= top_ps[row] * weights.sum()]] = 0.0
        through = weights.cumsum(0)
        chosen[row] = (through <= uniforms[row] * through[-1]).sum()
    return chosen


def draw_meta(logits: Tensor, *_: Tensor | None) -> Tensor:
    """Return the shape of a result."""
    return torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)

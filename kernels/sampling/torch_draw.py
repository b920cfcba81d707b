"""The draw on a CPU, in plain torch: only as many of a row's logits are ranked as its limits need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_NUM_CANDIDATES = (66, 514, 1 << 62)
"""Most likely tokens looked at for top-k and top-p, and how many the next time if those were too few.

A few more than the usual limits: whether the last that stays has equals is seen from the one after them.
"""
_BLOCK = 256
"""Weights per block of the two-level search."""
_FOLDS = 8
"""Layers of the sheet that a row is folded into to find its largest logits."""


def draw_torch(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    uniforms: Tensor,
    largest: Tensor | None = None,
) -> Tensor:
    """Draw as `Draw` says."""
    best = logits.amax(dim=-1) if largest is None else largest
    chosen = torch.zeros(logits.shape[0], dtype=torch.int64)
    drawn = ((temperatures > 0) & torch.isfinite(best)).nonzero().flatten()
    if drawn.numel():
        rows = _Rows(logits, best, temperatures, top_ks, top_ps, uniforms, min_ps)
        chosen[drawn] = _draw(rows.select(drawn))
    return chosen


class _Rows(NamedTuple):
    """Rows to draw from and how; the fields run in step."""

    logits: Tensor  # [n, vocab_size] float32
    best: Tensor  # [n] float32, each row's largest logit
    temperatures: Tensor  # [n] float32, above 0
    top_ks: Tensor  # [n] int64
    top_ps: Tensor  # [n] float64
    uniforms: Tensor  # [n] float64
    min_ps: Tensor | None  # [n] float32

    def select(self, index: Tensor) -> _Rows:
        """Return the rows at `index`, which rises; all of them are not copied."""
        if index.shape[0] == self.logits.shape[0]:
            return self
        fields = [None if field is None else field.index_select(0, index) for field in self]
        return _Rows(*fields)  # type: ignore[arg-type]  # None stays None and nothing else becomes it

    def weights(self, logits: Tensor) -> Tensor:
        """Return exp((logits - best) / temperature), 0 below min-p: the largest weight is 1.

        `best` goes first, or tiny temperatures overflow.
        """
        weights = (logits - self.best.unsqueeze(1)).div_(self.temperatures.unsqueeze(1)).exp_()
        return weights if self.min_ps is None else weights.mul_(weights >= self.min_ps.unsqueeze(1))


def _draw(rows: _Rows) -> Tensor:
    """Return a token for every row, top-k applied first, then top-p to what it left, as vLLM does."""
    vocab_size = rows.logits.shape[1]
    chosen = torch.empty_like(rows.top_ks)
    # Of the whole vocabulary, for rows without top-k; the others' is known once the candidates cover it.
    mass = torch.full_like(rows.uniforms, torch.inf)
    without_top_k = (rows.top_ks >= vocab_size).nonzero().flatten()
    if without_top_k.numel():
        chosen[without_top_k], mass[without_top_k] = _invert_whole(rows.select(without_top_k))
    limited = ((rows.top_ks < vocab_size) | (rows.top_ps < 1.0)).nonzero().flatten()
    for num_candidates in _NUM_CANDIDATES:
        if not limited.numel():
            break
        part, size = rows.select(limited), min(num_candidates, vocab_size)
        chosen[limited], is_settled = _invert_likeliest(part, mass[limited], size)
        limited = limited[~is_settled]
    return chosen


def _invert_whole(rows: _Rows) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution in vocabulary order, block by block; also return each row's mass."""
    weights = rows.weights(rows.logits)
    weights = F.pad(weights, (0, -weights.shape[1] % _BLOCK))
    blocks = weights.view(weights.shape[0], -1, _BLOCK)
    picks, rest, mass = _invert(blocks.sum(dim=-1), rows.uniforms)
    # The share of the chosen block's mass that is still to be walked is itself evenly spread.
    inside, _, _ = _invert(blocks[torch.arange(blocks.shape[0]), picks], rest)
    return picks * _BLOCK + inside, mass


def _invert_likeliest(rows: _Rows, mass: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution over each row's most likely tokens, in vocabulary order.

    Returns the tokens [n] and whether each is certain [n]: the candidates may end before the row's limits do,
    and then the allowed mass is unknown, or among tokens as likely as the last one allowed, and then others
    of them may come first.
    """
    top_ids: Tensor | None = None
    if num_candidates == rows.logits.shape[1]:
        in_order, top_logits = rows.logits, _falling(rows.logits)
    else:
        top_logits, top_ids = _likeliest(rows.logits, num_candidates)
        top_ids, order = top_ids.sort(dim=-1)
        in_order = top_logits.gather(1, order)
    weights = rows.weights(top_logits).double()
    # Past a likely token without weight come only more of them: min-p ends there, or exp() underflows.
    covers_all = (weights[:, -1] == 0.0) | (top_ids is None)
    allowed = weights.masked_fill(torch.arange(num_candidates) >= rows.top_ks.unsqueeze(1), 0.0)
    through = allowed.cumsum(dim=-1)
    mass = torch.where(covers_all | (rows.top_ks <= num_candidates), through[:, -1], mass)
    num_allowed = (through - allowed < (rows.top_ps * mass).unsqueeze(1)).sum(dim=-1)
    last = top_logits.gather(1, (num_allowed - 1).unsqueeze(1))  # the least likely one allowed
    is_settled = covers_all | (top_logits[:, -1] < last.squeeze(1))
    picks = _invert_down_to(rows, last, num_allowed, in_order)
    return picks if top_ids is None else top_ids.gather(1, picks.unsqueeze(1)).squeeze(1), is_settled


def _invert_down_to(rows: _Rows, last: Tensor, num_allowed: Tensor, logits: Tensor) -> Tensor:
    """Return places in `logits` [n, m], in vocabulary order: `num_allowed` count, the least likely `last`."""
    allowed = logits >= last
    too_many = allowed.sum(dim=-1) - num_allowed  # of those that equal the last one
    if too_many.any():
        equal = logits == last
        num_equal = equal.cumsum(dim=-1)
        allowed &= ~equal | (num_equal <= num_equal[:, -1:] - too_many.unsqueeze(1))
    picks, _, _ = _invert(rows.weights(logits).mul_(allowed), rows.uniforms)
    return picks


def _falling(logits: Tensor) -> Tensor:
    """Return each row's logits in falling order.

    NumPy's sort keeps no places: a tenth of the time of torch's, 35 and 362 ms for [32, 49152] (one core with
    AVX2, NumPy 2.4, torch 2.13, 2026-11).
    """
    return torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)


def _likeliest(logits: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Return each row's largest logits in falling order, and their places.

    The row is folded like a sheet: n largest logits lie in the n columns with the largest maxima. For 64 of
    49152 that takes a third of the time of `topk` on them all (one core, torch 2.13, 2026-11).
    """
    num_rows, vocab_size = logits.shape
    if vocab_size % _FOLDS or vocab_size < num_candidates * 4 * _FOLDS:
        top_logits, top_ids = logits.topk(num_candidates, dim=-1)
        return top_logits, top_ids
    sheet = logits.view(num_rows, _FOLDS, -1)
    columns = sheet.amax(dim=1).topk(num_candidates, dim=-1, sorted=False).indices
    candidates = sheet.gather(2, columns.unsqueeze(1).expand(-1, _FOLDS, -1)).view(num_rows, -1)
    top_logits, at = candidates.topk(num_candidates, dim=-1)
    folds, places = at // num_candidates, columns.gather(1, at % num_candidates)
    return top_logits, folds * sheet.shape[2] + places


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return per row the place where the running sum passes uniform * sum, how far into it, and the sum."""
    through = weights.cumsum(dim=-1, dtype=torch.float64)
    mass = through[:, -1]
    # Rounding must not carry the target up to the sum itself: no place would pass it.
    targets = torch.minimum(uniforms * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    picks = (through <= targets.unsqueeze(1)).sum(dim=-1)
    at = picks.unsqueeze(1)
    width = weights.gather(1, at).squeeze(1)
    into = (targets - through.gather(1, at).squeeze(1)) / width + 1.0
    return picks, into.clamp_(0.0, 1.0), mass

"""Rows to draw from, for every implementation of `draw`, compared with the rule in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.sampling.draw import Draw, draw_reference, weights_left

ALMOST_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True)
class Case:
    """What all rows have in common."""

    temperature: float = 1.0
    top_k: int | None = None  # None: the whole vocabulary
    top_p: float = 1.0
    min_p: float | None = None


class Arguments(NamedTuple):
    """What `Draw` is called with; the row's maxima may follow."""

    logits: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor | None
    uniforms: Tensor

    def weights_left(self) -> Tensor:  # [num_rows, vocab_size] float64
        """Return the rule's weights."""
        return weights_left(*self[:-1], self.logits.amax(dim=-1))


CASES = {
    "plain": Case(),
    "cold": Case(temperature=0.3),
    "hot": Case(temperature=40.0),
    "tiny temperature": Case(temperature=1e-30),
    "huge temperature": Case(temperature=1e30),
    "top-k 1": Case(top_k=1),
    "top-k 2": Case(top_k=2),
    "top-k 50": Case(top_k=50),
    "top-p tiny": Case(top_p=1e-9),
    "top-p": Case(top_p=0.9),
    "top-p of almost all": Case(top_p=1.0 - 1e-4),
    "top-k and top-p": Case(top_k=40, top_p=0.7),
    "min-p": Case(min_p=0.1),
    "min-p 1": Case(min_p=1.0),
    "min-p, top-k and top-p": Case(temperature=1.7, min_p=0.05, top_k=30, top_p=0.8),
    "hot top-k and top-p": Case(temperature=30.0, top_k=100, top_p=0.6),
}


def arguments(
    logits: Tensor,  # [num_rows, vocab_size] float32
    case: Case,
    uniforms: list[float] | Tensor,
) -> Arguments:
    """Return what `Draw` is called with."""
    num_rows, vocab_size = logits.shape
    return Arguments(
        logits,
        torch.full((num_rows,), case.temperature),
        torch.full((num_rows,), vocab_size if case.top_k is None else min(case.top_k, vocab_size)),
        torch.full((num_rows,), case.top_p, dtype=torch.float64),
        None if case.min_p is None else torch.full((num_rows,), case.min_p),
        torch.as_tensor(uniforms, dtype=torch.float64),
    )


def random_logits(num_rows: int, vocab_size: int, *, spread: float = 3.0, seed: int = 1) -> Tensor:
    """Return normal logits; every fifth token is forbidden, but the first ones of the vocabulary."""
    logits = spread * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    logits[:, 4::5] = -torch.inf
    return logits


def tied_logits(num_rows: int, vocab_size: int, *, seed: int = 2) -> Tensor:
    """Return logits of six values, zeros of both signs among them, so that limits fall among equals."""
    values = torch.tensor([-2.0, -0.0, 0.0, 1.0, 1.5, -torch.inf])
    return values[torch.randint(6, (num_rows, vocab_size), generator=torch.Generator().manual_seed(seed))]


def assert_draws_as_the_reference(draw: Draw, logits: Tensor, case: Case, uniforms: list[float]) -> None:
    """Compare the tokens of rows, one uniform each.

    A token is right if the limits leave it and it lies between those of uniforms moved up and down by as much
    as float32 weights err.
    """
    given = arguments(logits, case, uniforms)
    left = given.weights_left()
    first, last = (
        draw_reference(*given[:-1], (given.uniforms + move).clamp(0.0, ALMOST_ONE)).tolist()
        for move in (-3e-6, 3e-6)
    )

    tokens = draw(*given)

    assert (tokens.dtype, tokens.shape) == (torch.int64, logits.shape[:1])
    for row, token in enumerate(tokens.tolist()):
        assert first[row] <= token <= last[row], (row, token, first[row], last[row])
        assert left[row, token] > 0, (row, token)

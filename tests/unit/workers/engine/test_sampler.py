"""The sampler draws from the right distribution, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from workers.engine.sampler import derive_seed, sample, uniform
from workers.engine.step_input import SamplingInput


def sampling(
    num_rows: int,
    *,
    temperature: float = 1.0,
    top_k: int = 10_000,
    top_p: float = 1.0,
    uniforms: list[float] | None = None,
) -> SamplingInput:
    return SamplingInput(
        num_rows=num_rows,
        rows=torch.arange(num_rows),
        all_greedy=temperature == 0.0,
        temperatures=torch.full((num_rows,), temperature),
        top_ks=torch.full((num_rows,), top_k),
        top_ps=torch.full((num_rows,), top_p, dtype=torch.float64),
        uniforms=torch.tensor(uniforms or [0.5] * num_rows, dtype=torch.float64),
    )


def draws(logits: Tensor, count: int, **settings: float) -> Tensor:
    """Return how often each token is drawn when the uniforms cover [0, 1) evenly."""
    uniforms = [(index + 0.5) / count for index in range(count)]
    rows = logits.expand(count, -1)
    output = sample(rows, sampling(count, uniforms=uniforms, **settings))  # type: ignore[arg-type]
    return torch.bincount(torch.tensor(output.token_ids), minlength=logits.shape[-1])


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0], [5.0, 3.0, -1.0]])

    assert sample(logits, sampling(2, temperature=0.0)).token_ids == [1, 0]


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])

    counts = draws(logits, 10_000)

    expected = torch.softmax(logits, dim=-1) * 10_000
    assert torch.allclose(counts.double(), expected.double(), atol=2.0)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])

    assert torch.equal(draws(logits, 1000, temperature=0.5), draws(logits * 2, 1000))


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])

    assert draws(logits, 100, temperature=1e-30).tolist() == [0, 100, 0, 0]


def test_top_k_keeps_the_k_most_likely_and_renormalises() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))

    counts = draws(logits, 700, top_k=2)

    assert counts.tolist() == [0, 400, 0, 300]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))

    counts = draws(logits, 900, top_p=0.75)

    assert counts.tolist() == [0, 400, 200, 300]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 700}])
def test_a_flat_distribution_reaches_beyond_the_preselected_candidates(settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1000, generator=generator) * 0.01

    counts = draws(logits, 20_000, **settings)

    num_allowed = {"top_p": 900, "top_k": 700}.get(next(iter(settings), ""), 1000)
    assert abs(int((counts > 0).sum()) - num_allowed) <= 10
    assert counts.max() <= 2.0 * 20_000 / num_allowed


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(8, 500, generator=generator)
    uniforms = torch.rand(8, generator=generator).tolist()

    together = sample(logits, sampling(8, top_p=0.95, uniforms=uniforms)).token_ids
    alone = [
        sample(logits[row : row + 1], sampling(1, top_p=0.95, uniforms=uniforms[row : row + 1])).token_ids[0]
        for row in range(8)
    ]

    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_fail_their_own_row_only(temperature: float, bad: float) -> None:
    logits = torch.tensor([[0.0, 9.0], [0.0, bad], [9.0, 0.0]])

    output = sample(logits, sampling(3, temperature=temperature))

    assert output.failed == [False, True, False]
    assert (output.token_ids[0], output.token_ids[2]) == (1, 0)


def test_a_forbidden_token_is_no_failure() -> None:
    logits = torch.tensor([[0.0, -math.inf, 9.0]])

    output = sample(logits, sampling(1))

    assert (output.token_ids, output.failed) == ([2], [False])


def test_uniforms_are_spread_evenly_and_depend_on_seed_and_position() -> None:
    values = [uniform(seed, position) for seed in range(100) for position in range(100)]

    assert all(0.0 <= value < 1.0 for value in values)
    assert len(set(values)) == 10_000
    bins = torch.histc(torch.tensor(values), bins=20, min=0.0, max=1.0)
    assert bins.min() > 400
    assert bins.max() < 600


def test_unseeded_requests_get_seeds_of_their_own() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(0, "a"), derive_seed(0, "b"), derive_seed(1, "a")}) == 3

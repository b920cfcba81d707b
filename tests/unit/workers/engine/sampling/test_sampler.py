"""The sampler draws from the right distribution, row by row."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.engine.sampling.chosen import sample
from workers.engine.core.step_input import SamplingInput, TokenMasks
from workers.engine.sampling.sampler import derive_seed, uniform

pytestmark = pytest.mark.numeric


def sampling(
    num_rows: int,
    *,
    temperature: float = 1.0,
    top_k: int = 10_000,
    top_p: float = 1.0,
    min_p: float | None = None,
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
        min_ps=None if min_p is None else torch.full((num_rows,), min_p),
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


@pytest.mark.parametrize("vocab_size", [7, 259, 512, 4096])
def test_greedy_takes_the_first_of_equal_ones_in_any_vocabulary(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(0, 50, (64, vocab_size), generator=generator).float()

    expected = [row.index(max(row)) for row in logits.tolist()]
    assert sample(logits, sampling(64, temperature=0.0)).token_ids == expected


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


@pytest.mark.parametrize(("top_p", "expected"), [(0.5, [0, 700, 0, 0]), (0.6, [0, 400, 0, 300])])
def test_top_p_counts_the_mass_that_top_k_left(top_p: float, expected: list[int]) -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))

    counts = draws(logits, 700, top_k=2, top_p=top_p)

    assert counts.tolist() == expected  # of the two that are left, the first has 4/7 of the mass


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))

    counts = draws(logits, 900, top_p=0.75)

    assert counts.tolist() == [0, 400, 200, 300]


@pytest.mark.parametrize("vocab_size", [1000, 2048])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 700}])
def test_a_flat_distribution_reaches_beyond_the_preselected_candidates(
    settings: dict[str, float], vocab_size: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(vocab_size, generator=generator) * 0.01

    counts = draws(logits, 5_000, **settings)

    num_allowed = {"top_p": 0.9 * vocab_size, "top_k": 700}.get(next(iter(settings), ""), vocab_size)
    assert abs(int((counts > 0).sum()) - num_allowed) <= 0.01 * vocab_size
    assert counts.max() <= 2.0 * 5_000 / num_allowed


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 40}, {"top_k": 40, "top_p": 0.8}])
def test_a_peaked_distribution_is_drawn_as_a_direct_computation_says(settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2048, generator=generator) * 4

    counts = draws(logits, 4_000, **settings)

    expected = torch.softmax(logits.double(), dim=-1)
    in_order = expected.argsort(descending=True)
    expected[in_order[int(settings.get("top_k", 2048)) :]] = 0.0
    expected /= expected.sum()
    mass_before = expected[in_order].cumsum(0) - expected[in_order]
    expected[in_order[mass_before >= settings.get("top_p", 1.0)]] = 0.0
    assert (counts - expected / expected.sum() * 4_000).abs().max() <= 2.0


@pytest.mark.parametrize("spread", [0.01, 4.0])
@pytest.mark.parametrize(
    "settings",
    [{"min_p": 0.3}, {"min_p": 0.02, "top_k": 9}, {"min_p": 0.02, "top_p": 0.7, "temperature": 1.4}],
)
def test_min_p_drops_what_is_unlikely_beside_the_likeliest_before_top_k_and_top_p(
    settings: dict[str, float], spread: float
) -> None:
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2048, generator=generator) * spread

    counts = draws(logits, 4_000, **settings)

    expected = torch.softmax(logits.double() / settings.get("temperature", 1.0), dim=-1)
    expected[expected < settings["min_p"] * expected.max()] = 0.0
    in_order = expected.argsort(descending=True)
    expected[in_order[int(settings.get("top_k", 2048)) :]] = 0.0
    expected /= expected.sum()
    mass_before = expected[in_order].cumsum(0) - expected[in_order]
    expected[in_order[mass_before >= settings.get("top_p", 1.0)]] = 0.0
    assert (counts - expected / expected.sum() * 4_000).abs().max() <= 2.0


def test_min_p_of_one_row_is_not_its_neighbour_s() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.4], [0.6, 0.4]]))
    both = dataclasses.replace(sampling(2, uniforms=[0.9, 0.9]), min_ps=torch.tensor([0.0, 0.7]))

    assert sample(logits, both).token_ids == [1, 0]


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_never_reach_forbidden_tokens(uniform: float) -> None:
    logits = torch.full((2, 4096), -math.inf)
    logits[:, 300:3000] = torch.linspace(-3.0, 0.0, 2700)

    for settings in ({}, {"top_p": 0.999}, {"top_k": 3500}):
        for token_id in sample(logits, sampling(2, uniforms=[uniform] * 2, **settings)).token_ids:
            assert 300 <= token_id < 3000, settings


@pytest.mark.parametrize("vocab_size", [500, 4096])
@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_a_row_does_not_depend_on_its_neighbours(vocab_size: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(8, vocab_size, generator=generator)
    uniforms = torch.rand(8, generator=generator).tolist()

    together = sample(logits, sampling(8, top_p=top_p, uniforms=uniforms)).token_ids
    alone = [
        sample(logits[row : row + 1], sampling(1, top_p=top_p, uniforms=uniforms[row : row + 1])).token_ids[0]
        for row in range(8)
    ]

    assert together == alone


def test_greedy_and_drawn_rows_keep_their_own_settings_in_one_batch() -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(4, 4096, generator=generator) * 3
    uniforms = [0.9, 0.9, 0.9, 0.9]
    mixed = dataclasses.replace(
        sampling(4, uniforms=uniforms),
        temperatures=torch.tensor([0.0, 1.0, 0.5, 1.0]),
        top_ks=torch.tensor([4096, 4096, 20, 4096]),
        top_ps=torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64),
    )

    settings = [{"temperature": 0.0}, {}, {"temperature": 0.5, "top_k": 20}, {"top_p": 0.5}]
    alone = [
        sample(logits[row : row + 1], sampling(1, uniforms=[0.9], **setting)).token_ids[0]  # type: ignore[arg-type]
        for row, setting in enumerate(settings)
    ]
    assert sample(logits, mixed).token_ids == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vocab_size", [2, 512])
def test_non_finite_logits_fail_their_own_row_only(temperature: float, bad: float, vocab_size: int) -> None:
    logits = torch.zeros(3, vocab_size)
    logits[0, 1] = logits[2, 0] = 90.0
    logits[1, vocab_size - 1] = bad

    output = sample(logits, sampling(3, temperature=temperature))

    assert output.failed == [False, True, False]
    assert (output.token_ids[0], output.token_ids[2]) == (1, 0)


@hypothesis.settings(max_examples=150, deadline=None)
@given(
    row=st.lists(
        st.sampled_from([math.nan, math.inf, -math.inf, -3e38, 3e38, 0.0, 2.0]), min_size=8, max_size=8
    ),
    repeats=st.sampled_from([1, 64]),
    mask=st.sets(st.integers(0, 7)) | st.none(),
    temperature=st.sampled_from([0.0, 1e-6, 1.0]),
    limits=st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}]),
    uniform=st.sampled_from([0.0, 0.5, 1.0 - 2.0**-53]),
)
def test_a_row_yields_an_id_of_the_vocabulary_whatever_its_logits(
    row: list[float],
    repeats: int,
    mask: set[int] | None,
    temperature: float,
    limits: dict[str, float],
    uniform: float,
) -> None:
    logits = torch.tensor([row * repeats])
    asked = sampling(1, temperature=temperature, uniforms=[uniform], **limits)  # type: ignore[arg-type]
    if mask is not None:
        bits = torch.tensor([[sum(1 << token for token in mask)] + [0] * (8 * repeats // 32)])
        asked = dataclasses.replace(asked, masks=TokenMasks(torch.tensor([0]), _words(bits, 8 * repeats)))

    output = sample(logits, asked)

    assert 0 <= output.token_ids[0] < 8 * repeats
    assert output.failed[0] or math.isfinite(row[output.token_ids[0] % 8])


def _words(bits: Tensor, vocab_size: int) -> Tensor:  # [1, ceil(vocab_size / 32)] int32
    return bits[:, : -(-vocab_size // 32)].int()


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

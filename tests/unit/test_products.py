"""The trial of torch's products notices what depends on a batch, and what it found is found again."""

from __future__ import annotations

import os

import pytest
import torch

from tests import levels
from tests.emulated import products
from tests.emulated.library import VARIABLE
from tests.emulated.products import halved
from tests.unit.products import SHAPES, assert_same_logits, assert_same_rows, is_kept, keeps_rows, random

pytestmark = pytest.mark.numeric
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_keep_their_bits_on_the_processors_that_are_documented_so(dtype: torch.dtype) -> None:
    processor = levels.Processor.of_this_machine()
    holding_back = [setting.variable for setting in levels.SETTINGS if setting.emulates is None]
    others = [name for name in holding_back if name in os.environ]
    if os.environ.get(VARIABLE) == products.NAME:
        others.append(products.NAME)
    if others:
        pytest.skip(f"{others[0]} chooses other kernels")
    if (processor.vendor, processor.instruction_sets) != ("AuthenticAMD", ("avx2",)):
        pytest.skip(f"not shown to hold on {processor}")

    assert keeps_rows(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_that_depends_on_the_number_of_rows_is_noticed(dtype: torch.dtype) -> None:
    weights = [random(*shape).to(dtype) for shape in SHAPES]

    assert not all(is_kept(lambda x: halved(x, weight), weight) for weight in weights)  # noqa: B023


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_order_of_sums_stays_within_the_tolerances(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.products.keeps_rows", lambda dtype: False)

    for shape in SHAPES:
        weight, x = random(*shape).to(dtype), random(40, shape[1]).to(dtype)
        size = shape[1] ** 0.5
        few = torch.cat([halved(x[:8], weight), halved(x[8:16], weight)])
        assert_same_rows(few, halved(x, weight)[:16], multiplied_in=dtype, size=size)
        with pytest.raises(AssertionError):
            assert_same_rows(few, halved(x.roll(1, 1), weight)[:16], multiplied_in=dtype, size=size)


def test_answers_may_part_at_a_near_tie_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.products.keeps_rows", lambda dtype: False)
    one = torch.tensor([[0.0, 5.0], [1.0, 1.00005], [0.0, 9.0]])
    near_tie = torch.tensor([[0.0, 5.0], [1.00008, 1.0], [7.0, 0.0]])
    other_choice = torch.tensor([[0.0, 5.0], [1.1, 1.0], [7.0, 0.0]])

    assert_same_logits(one, near_tie, "float32")
    with pytest.raises(AssertionError):
        assert_same_logits(one, other_choice, "float32")

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.cpu.library import Level
from kernels.linear.quantized_linear import QuantizedLinear
from tests.unit.kernels.conftest import Resolve
from tests.unit.kernels.random_codes import random_weight
from tests.unit.products import assert_same_rows

pytestmark = pytest.mark.numeric
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # a bfloat16 result is rounded once


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("out_features", "in_features", "block"),
    [(1, 1, 1), (7, 33, 5), (33, 48, 16), (50, 64, 64), (16, 96, 96)],
)
def test_it_equals_the_dequantised_weight(
    out_features: int, in_features: int, block: int, bits: int, dtype: torch.dtype, resolve: Resolve
) -> None:
    weight = random_weight(out_features, in_features, bits=bits, block=block, table=torch.linspace(-8, 8, 16))
    bias = torch.randn(out_features).to(dtype)
    layer = QuantizedLinear([weight], bias, multiply=resolve("quantized_linear", dtype))
    for num_rows in (1, 2, 3, 4, 9):
        x = torch.randn(num_rows, in_features).to(dtype)
        expected = x.double() @ weight.dense().to(dtype).double().T + bias.double()
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(layer(x).double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bits", [4, 8])
def test_parts_stand_side_by_side_each_with_its_own_order_of_columns(bits: int, resolve: Resolve) -> None:
    multiply = resolve("quantized_linear", torch.float32)
    parts = [random_weight(rows, 64, bits=bits, block=32, seed=rows) for rows in (24, 8, 8)]
    parts[1] = replace(parts[1], columns=torch.randperm(64).int())
    layer, bias, x = QuantizedLinear(parts, multiply=multiply), torch.randn(40), torch.randn(5, 64)

    assert layer.dense().shape == (layer.out_features, layer.in_features) == (40, 64)
    torch.testing.assert_close(layer(x), x @ layer.dense().T)
    biased = QuantizedLinear(parts, bias, multiply=multiply)
    torch.testing.assert_close(biased(x), x @ layer.dense().T + bias)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_batch(
    bits: int, dtype: torch.dtype, level: Level, resolve: Resolve
) -> None:
    multiply = resolve("quantized_linear", dtype)
    layer = QuantizedLinear([random_weight(100, 96, bits=bits, block=32)], multiply=multiply)
    x = torch.randn(24, 96).to(dtype)

    whole = layer(x)

    # torch's own product is MKL's in float32, which is steady for multiples of 4 rows at most.
    for num_rows in range(4, 24, 4) if level == "torch" else range(1, 24):
        multiplied_in = dtype if level == "torch" else None
        assert_same_rows(layer(x[:num_rows]), whole[:num_rows], multiplied_in=multiplied_in)


def test_no_rows_give_no_rows(resolve: Resolve) -> None:
    multiply = resolve("quantized_linear", torch.float32)
    layer = QuantizedLinear([random_weight(8, 32, bits=4, block=32)], multiply=multiply)

    assert layer(torch.empty(0, 32)).shape == (0, 8)


def test_rows_of_another_width_are_refused_with_both_widths(resolve: Resolve) -> None:
    multiply = resolve("quantized_linear", torch.float32)
    layer = QuantizedLinear([random_weight(8, 32, bits=4, block=32)], multiply=multiply)

    with pytest.raises(ValueError, match=r"x is \(2, 33\); this module needs \[num_rows, 32\]"):
        layer(torch.zeros(2, 33))

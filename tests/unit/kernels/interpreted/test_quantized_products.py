"""The Triton product with codes, and the plain rows made of them, against the reference and float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.linear import triton_quantized_linear, triton_spread
from kernels.linear.quantized_linear import QuantizedLinear, quantized_linear_reference
from kernels.linear.quantized_weight import QuantizedWeight
from kernels.linear.triton_quantized_linear import TILES, quantized_linear_triton, split_width
from kernels.linear.triton_spread import spread_rows
from tests.unit.kernels.random_codes import random_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TABLE = torch.linspace(-8, 8, 16).sinh()
CODINGS: dict[str, dict[str, Any]] = {
    "NF4, whole blocks": {"bits": 4, "block": 64, "table": TABLE, "zeros": False},
    "int4, groups of 128": {"bits": 4, "block": 128},
    "int4, groups of 32": {"bits": 4, "block": 32},
    "int8 rows": {"bits": 8, "block": None},
    "int8, groups of 24": {"bits": 8, "block": 24},
    "table and zeros, blocks from row to row": {"bits": 4, "block": 20, "table": TABLE},
}


def coded(out_features: int, in_features: int, coding: str) -> QuantizedWeight:
    options = dict(CODINGS[coding])
    has_zeros = options.pop("zeros", True)
    options["block"] = options["block"] or in_features
    weight = random_weight(out_features, in_features, **options)
    return weight if has_zeros else replace(weight, zeros=None)


def assert_as_near_as_the_reference(out: Tensor, plain: Tensor, exact: Tensor, num_terms: int) -> None:
    size = float(exact.square().mean().sqrt())
    error, plain_error = (float((one.double() - exact).abs().max()) / size for one in (out, plain))
    if out.dtype is torch.float32:
        assert error <= 2e-6 * num_terms**0.5
    else:
        assert error <= 1.5 * plain_error + torch.finfo(out.dtype).eps


@pytest.mark.parametrize(
    ("num_rows", "out_features", "in_features", "dtype"),
    [
        (1, 65, 128, torch.bfloat16),
        (3, 7, 33, torch.bfloat16),
        (17, 40, 160, torch.bfloat16),
        (65, 16, 256, torch.bfloat16),
        (3, 7, 33, torch.float32),
        (17, 9, 128, torch.float32),
        (1, 9, 160, torch.float16),
    ],
)
@pytest.mark.parametrize("coding", CODINGS)
def test_it_multiplies_as_the_reference_does(
    num_rows: int, out_features: int, in_features: int, coding: str, dtype: torch.dtype
) -> None:
    weight = coded(out_features, in_features, coding)
    generator = torch.Generator().manual_seed(2)
    x, bias = (
        torch.randn(num_rows, in_features, generator=generator).to(dtype),
        torch.randn(out_features).to(dtype),
    )
    out, plain = (torch.full((num_rows, out_features + 3), 7.0, dtype=dtype) for _ in range(2))
    given = None if num_rows == 3 else bias
    exact = x.double() @ weight.coded_rows(0, out_features).to(dtype).double().T
    exact = exact if given is None else exact + bias.double()

    quantized_linear_triton(out, 2, x, weight, given)

    quantized_linear_reference(plain, 2, x, weight, given)
    mine = slice(2, 2 + out_features)
    assert_as_near_as_the_reference(out[:, mine], plain[:, mine], exact, in_features)
    assert (out[:, :2] == 7).all()
    assert (out[:, 2 + out_features :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_columns_are_split_where_outputs_are_few_and_a_rows_bits_stay_its_own(dtype: torch.dtype) -> None:
    weight = coded(5, 1088, "NF4, whole blocks")
    x, bias = torch.randn(18, 1088).to(dtype), torch.randn(5).to(dtype)
    assert -(-1088 // split_width(5, 1088, TILES[0])) == 2
    layer = QuantizedLinear([weight], bias, multiply=quantized_linear_triton)

    whole = layer(x)

    plain = QuantizedLinear([weight], bias, multiply=quantized_linear_reference)(x)
    exact = x.double() @ weight.dense().to(dtype).double().T + bias.double()
    assert_as_near_as_the_reference(whole, plain, exact, 1088)
    assert torch.equal(layer(x[3:4]), whole[3:4])


@pytest.mark.parametrize(("coding", "dtype"), [*zip(CODINGS, DTYPES * 2, strict=True)])
def test_rows_are_spread_out_to_the_bits_that_the_weight_has(
    coding: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = coded(21, 96, coding)
    monkeypatch.setattr(triton_spread, "ROW_MULTIPLE", 16)
    monkeypatch.setattr(triton_spread, "MAX_TILE_BYTES", 0)

    tiles = [(start, end, rows.clone()) for start, end, rows in spread_rows(weight, dtype)]

    assert [tile[:2] for tile in tiles] == [(0, 16), (16, 21)]
    assert torch.equal(torch.cat([rows for *_, rows in tiles]), weight.coded_rows(0, 21).to(dtype))


@pytest.mark.parametrize("has_bias", [False, True])
def test_many_rows_multiply_what_was_spread_out(has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = coded(21, 64, "int4, groups of 32")
    monkeypatch.setattr(triton_quantized_linear, "MAX_SLOW_ROWS", 2)
    bias = torch.randn(21) if has_bias else None
    x, out, plain = torch.randn(3, 64), torch.full((3, 25), 7.0), torch.full((3, 25), 7.0)

    quantized_linear_triton(out, 1, x, weight, bias)

    quantized_linear_reference(plain, 1, x, weight, bias)
    torch.testing.assert_close(out, plain)


def test_nan_stays_in_its_row_and_no_rows_launch_nothing() -> None:
    layer = QuantizedLinear([coded(8, 64, "int8 rows")], multiply=quantized_linear_triton)
    x = torch.randn(3, 64)
    x[1, 5] = float("nan")

    out = layer(x)

    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()
    assert layer(x[:0]).shape == (0, 8)

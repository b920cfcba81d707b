from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.linear import linear
from kernels.linear.linear import Linear, linear_reference
from kernels.registry import resolve
from tests.emulated.library import at_level
from tests.unit.kernels.conftest import Resolve
from tests.unit.products import assert_same_rows

pytestmark = pytest.mark.numeric


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    return Linear(weight, bias, kernel=resolve("linear", "cpu", weight.dtype, "torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (7, 33), (960, 576), (64, 1536)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_equals_plain_torch(
    out_features: int, in_features: int, has_bias: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(out_features, in_features, generator=generator) / in_features**0.5).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype) if has_bias else None
    layer = make_linear(weight, bias)
    for num_rows in (1, 4, 32, 33):
        x = torch.randn(num_rows, in_features, generator=generator).to(dtype)
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(
            layer(x), linear_reference(x, weight, bias), atol=tolerance, rtol=tolerance
        )
    assert torch.equal(layer.dense(), weight)


def test_a_row_in_bfloat16_does_not_depend_on_its_batch() -> None:
    layer, x = make_linear(torch.randn(960, 576).bfloat16()), torch.randn(70, 576).bfloat16()

    whole = layer(x)

    for num_rows in (1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 64):
        assert_same_rows(layer(x[:num_rows]), whole[:num_rows], multiplied_in=torch.bfloat16)


@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (13, 33), (100, 96)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bfloat16_is_summed_in_float32_at_every_level(
    out_features: int, in_features: int, has_bias: bool, resolve: Resolve
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out_features, in_features, generator=generator).bfloat16()
    bias = torch.randn(out_features, generator=generator).bfloat16() if has_bias else None
    layer = Linear(weight, bias, kernel=resolve("linear", torch.bfloat16))

    for num_rows in (0, 1, 3, 8, 9, 23):
        x = torch.randn(num_rows, in_features, generator=generator).bfloat16()
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        # Half a unit in the last place of bfloat16, and what float32 loses of the sums.
        torch.testing.assert_close(layer(x).double(), exact, atol=1e-4, rtol=2**-8)


def test_few_rows_and_many_have_the_same_bits_where_many_are_widened() -> None:
    with at_level("avx2"):
        layer = Linear(torch.randn(100, 72).bfloat16(), kernel=linear.linear_compiled("avx2"))
        x = torch.randn(40, 72).bfloat16()

        whole = layer(x)

        for start, end in ((0, 1), (1, 4), (4, 12), (12, 21), (21, 40)):
            assert torch.equal(layer(x[start:end]), whole[start:end])


def test_a_torch_without_the_private_operators_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    weight, x = torch.randn(8, 16).bfloat16(), torch.randn(4, 16).bfloat16()
    monkeypatch.setattr(linear, "_pack", refuse)
    linear.can_pack.cache_clear()

    layer = make_linear(weight)
    linear.can_pack.cache_clear()

    assert layer.kernel.name == "widened"
    torch.testing.assert_close(layer(x), F.linear(x, weight))


def test_bfloat16_without_packing_sums_in_float32_and_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda: False)
    weight, bias = torch.randn(2100, 64).bfloat16(), torch.randn(2100).bfloat16()
    layer, x = make_linear(weight, bias), torch.randn(70, 64).bfloat16()

    whole = layer(x)

    expected = F.linear(x.float(), weight.float(), bias.float())
    assert_same_rows(whole, expected.bfloat16(), multiplied_in=torch.float32)
    for num_rows in (1, 2, 3, 5, 9, 33):
        assert_same_rows(layer(x[:num_rows]), whole[:num_rows], multiplied_in=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_tells_the_bytes_it_holds(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(8, 16).to(dtype), torch.randn(8).to(dtype)

    assert make_linear(weight).nbytes == weight.nbytes
    assert make_linear(weight, bias).nbytes == weight.nbytes + bias.nbytes

"""The Triton norm and gates on host memory, in the dtypes that run, against plain torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.registry import by_name, resolve

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 7), (2, 33), (3, 576), (2, 1500)]


def _random(dtype: torch.dtype, *shape: int) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))).to(dtype)


def _assert_as_near_as_torch(result: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Allow half as much again as torch errs in the same dtype, and a unit in the last place."""
    error, torch_error = (
        float(((one.double() - exact).abs() / (1 + exact.abs())).max()) for one in (result, plain)
    )
    assert error <= 1.5 * torch_error + torch.finfo(result.dtype).eps, (error, torch_error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("adds", [True, False])
def test_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype, adds: bool) -> None:
    residual, weight = _random(dtype, *shape), _random(torch.float32, shape[1])
    delta = _random(dtype, *shape).flip(1).contiguous() if adds else None
    plain_sum, exact_sum = residual.clone(), residual.double()
    if delta is not None:
        exact_sum = (exact_sum + delta.double()).to(dtype).double()
    exact = exact_sum * (exact_sum.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    plain = by_name("add_rms_norm").reference(plain_sum, delta, weight, 1e-5)

    normed = resolve("add_rms_norm", "cpu", dtype, "triton")(residual, delta, weight, 1e-5)

    assert torch.equal(residual, plain_sum)
    assert normed.dtype is dtype
    _assert_as_near_as_torch(normed, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gates(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = _random(dtype, shape[0], 2 * shape[1])
    reference: Any = by_name(name).reference

    result = resolve(name, "cpu", dtype, "triton")(gate_up)

    assert result.dtype is dtype
    _assert_as_near_as_torch(result, reference(gate_up), reference(gate_up.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_clamped_gate(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = 3 * _random(dtype, shape[0], 2 * shape[1])
    reference: Any = by_name("clamped_swiglu").reference

    result = resolve("clamped_swiglu", "cpu", dtype, "triton")(gate_up, 1.702, 7.0)

    assert result.dtype is dtype
    _assert_as_near_as_torch(result, *(reference(one, 1.702, 7.0) for one in (gate_up, gate_up.double())))


def test_the_clamped_gate_keeps_nan() -> None:
    gate_up = torch.tensor([[float("nan"), 1, 1, float("nan"), 300.0, -300.0]])

    result = resolve("clamped_swiglu", "cpu", torch.float32, "triton")(gate_up, 1.702, 7.0)[0]

    assert result[:2].isnan().all()
    torch.testing.assert_close(result[2], torch.tensor(-42.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_extreme_gates_close_or_open_fully_and_nan_shows(name: str) -> None:
    gate_up = torch.tensor([[-300.0, -90.0, 0.0, 90.0, 300.0, float("nan"), 1, 1, 1, 1, 1, 1]])

    result = resolve(name, "cpu", torch.float32, "triton")(gate_up)[0]

    torch.testing.assert_close(result[:5], torch.tensor([0.0, 0.0, 0.0, 90.0, 300.0]), atol=1e-30, rtol=1e-6)
    assert result[5].isnan()


def test_nan_stays_in_its_row() -> None:
    x, weight = _random(torch.float32, 4, 65), torch.ones(65)
    poisoned = x.clone()
    poisoned[2, 3] = float("nan")
    add_rms_norm = resolve("add_rms_norm", "cpu", torch.float32, "triton")

    whole, clean = (add_rms_norm(one, None, weight, 1e-6) for one in (poisoned, x))

    assert whole[2].isnan().all()
    assert torch.equal(whole[[0, 1, 3]], clean[[0, 1, 3]])


def test_nothing_is_launched_for_no_rows() -> None:
    add_rms_norm, swiglu = (
        resolve(name, "cpu", torch.float32, "triton") for name in ("add_rms_norm", "swiglu")
    )

    assert add_rms_norm(torch.empty(0, 8), None, torch.ones(8), 1e-6).shape == (0, 8)
    assert swiglu(torch.empty(0, 8)).shape == (0, 4)

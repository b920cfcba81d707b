from __future__ import annotations

import pytest
import torch

from kernels.activations.swiglu import swiglu_reference
from tests.unit.kernels.conftest import Resolve

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 7), (5, 33), (32, 1536)])
def test_it_equals_plain_torch(num_rows: int, width: int, dtype: torch.dtype, resolve: Resolve) -> None:
    gate_up = 8 * torch.randn(num_rows, 2 * width, generator=torch.Generator().manual_seed(1)).to(dtype)

    result = resolve("swiglu", dtype)(gate_up)

    expected = swiglu_reference(gate_up.double())
    tolerance = 2e-6 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


def test_extreme_gates_close_or_open_fully_and_nan_shows(resolve: Resolve) -> None:
    gate_up = torch.tensor([[-300.0, -90.0, 0.0, 90.0, 300.0, float("nan"), 1, 1, 1, 1, 1, 1]])

    result = resolve("swiglu", torch.float32)(gate_up)[0]

    torch.testing.assert_close(result[:5], torch.tensor([0.0, 0.0, 0.0, 90.0, 300.0]), atol=1e-30, rtol=1e-6)
    assert result[5].isnan()

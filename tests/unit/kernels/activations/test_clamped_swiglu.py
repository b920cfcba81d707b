from __future__ import annotations

import pytest
import torch

from kernels.activations.clamped_swiglu import clamped_swiglu_reference
from tests.unit.kernels.conftest import Resolve

pytestmark = pytest.mark.numeric

ALPHA, LIMIT = 1.702, 7.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 7), (5, 33), (32, 1536)])
def test_it_equals_plain_torch(num_rows: int, width: int, dtype: torch.dtype, resolve: Resolve) -> None:
    gate_up = 8 * torch.randn(num_rows, 2 * width, generator=torch.Generator().manual_seed(1)).to(dtype)

    result = resolve("clamped_swiglu", dtype)(gate_up, ALPHA, LIMIT)

    expected = clamped_swiglu_reference(gate_up.double(), ALPHA, LIMIT)
    tolerance = 2e-6 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


def test_extremes_are_clamped_and_nan_shows(resolve: Resolve) -> None:
    nan = float("nan")
    gate_up = torch.tensor([[-300.0, 1, 300.0, 0, 300.0, 300.0, 7.0, -300.0, nan, 1, 1, nan]])

    result = resolve("clamped_swiglu", torch.float32)(gate_up, ALPHA, LIMIT)[0]

    torch.testing.assert_close(result[:4], torch.tensor([0.0, 7.0, 56.0, -42.0]), atol=1e-3, rtol=1e-6)
    assert result[4:].isnan().all()

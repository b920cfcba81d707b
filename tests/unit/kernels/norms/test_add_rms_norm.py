from __future__ import annotations

import pytest
import torch

from kernels.norms.add_rms_norm import add_rms_norm_reference
from tests.unit.kernels.conftest import Resolve

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 7), (5, 33), (32, 576), (70, 100)])
@pytest.mark.parametrize("adds", [True, False])
def test_it_equals_plain_torch(
    num_rows: int, width: int, dtype: torch.dtype, adds: bool, resolve: Resolve
) -> None:
    generator = torch.Generator().manual_seed(1)
    residual, delta = (torch.randn(num_rows, width, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(width, generator=generator)
    expected_sum = residual.clone()
    expected = add_rms_norm_reference(expected_sum, delta if adds else None, weight, 1e-5)

    normed = resolve("add_rms_norm", dtype)(residual, delta if adds else None, weight, 1e-5)

    assert torch.equal(residual, expected_sum)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(normed, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch_and_nan_stays_in_its_row(
    dtype: torch.dtype, resolve: Resolve
) -> None:
    add_rms_norm = resolve("add_rms_norm", dtype)
    x, weight = torch.randn(40, 65).to(dtype), torch.ones(65)
    poisoned = x.clone()
    poisoned[7, 3] = float("nan")
    whole = add_rms_norm(poisoned, None, weight, 1e-6)

    alone = torch.cat([add_rms_norm(x[row : row + 1].clone(), None, weight, 1e-6) for row in range(40)])

    assert whole[7].isnan().all()
    others = [row for row in range(40) if row != 7]
    assert torch.equal(whole[others], alone[others])

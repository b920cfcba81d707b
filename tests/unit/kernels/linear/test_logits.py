from __future__ import annotations

import pytest
import torch

from kernels.cpu.library import Level
from kernels.linear.logits import Head
from tests.unit.kernels.conftest import Resolve
from tests.unit.products import assert_same_rows

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "width"), [(1, 1), (17, 33), (259, 64), (1000, 95)])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 11])
def test_logits_are_exact_to_float32(
    num_rows: int, vocab_size: int, width: int, dtype: torch.dtype, resolve: Resolve
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocab_size, width, generator=generator).to(dtype)
    x = torch.randn(num_rows, width, generator=generator).to(dtype)

    logits = Head(weight, resolve("logits", dtype))(x)

    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-4, rtol=1e-5)


def test_a_row_in_bfloat16_does_not_depend_on_its_batch(level: Level, resolve: Resolve) -> None:
    head = Head(torch.randn(259, 72).bfloat16(), resolve("logits", torch.bfloat16))
    x = torch.randn(23, 72).bfloat16()

    whole = head(x)

    # torch's own product is MKL's in float32, which is steady for multiples of 4 rows at most.
    for num_rows in range(4, 24, 4) if level == "torch" else range(1, 24):
        multiplied_in = torch.float32 if level == "torch" else None
        assert_same_rows(head(x[:num_rows]), whole[:num_rows], multiplied_in=multiplied_in, size=8)

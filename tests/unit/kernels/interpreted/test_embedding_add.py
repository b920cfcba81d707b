"""LoRA of the embedding by its Triton kernel on host memory, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.lora.segments import SlotScale
from kernels.registry import resolve
from tests.unit.kernels.embedding_cases import EmbeddingCase, make_embedding_case

RUNS = [
    (5, ()),
    (17, (SlotScale(0, 0.5),)),
    (3, (SlotScale(1, -2.0),)),
    (1, (SlotScale(1, 3.0),)),
    (2, (SlotScale(4),)),
    (2, (SlotScale(2, 0.5), SlotScale(0))),
    (1, (SlotScale(3),)),
]


def _error(case: EmbeddingCase, exact: Tensor) -> float:
    return float((case.embedded.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("block_rows", [16, 64])
@pytest.mark.parametrize("hidden_size", [33, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_errs_no_more_than_plain_torch_and_leaves_base_rows_alone(
    dtype: torch.dtype, hidden_size: int, block_rows: int
) -> None:
    case, by_torch = (
        make_embedding_case(
            ranks=[1, 16, 37, 0, 4],
            runs=RUNS,
            hidden_size=hidden_size,
            dtype=dtype,
            block_rows=block_rows,
            num_tiles=12,
        )
        for _ in range(2)
    )
    before, exact = case.embedded.clone(), case.exact()

    resolve("embedding_lora_add", "cpu", dtype, "triton")(
        case.embedded, case.token_ids, case.segments, case.module
    )

    resolve("embedding_lora_add", "cpu", dtype, "torch")(
        by_torch.embedded, by_torch.token_ids, by_torch.segments, by_torch.module
    )
    allowed = 2e-6 * 37**0.5 if dtype is torch.float32 else 1.5 * _error(by_torch, exact)
    assert _error(case, exact) <= allowed
    assert torch.equal(case.embedded[:5], before[:5])
    assert torch.equal(case.embedded[-1], before[-1])


def test_nan_in_one_adapter_reaches_no_other_row() -> None:
    runs: list[tuple[int, tuple[SlotScale, ...]]] = [(4, (SlotScale(0),)), (4, (SlotScale(1),))]
    case = make_embedding_case(ranks=[8, 8], runs=runs, hidden_size=32, dtype=torch.float32, block_rows=16)
    poisoned = case.module.weights(0)
    assert poisoned is not None
    poisoned.a.fill_(float("nan"))
    exact = case.exact()

    resolve("embedding_lora_add", "cpu", torch.float32, "triton")(
        case.embedded, case.token_ids, case.segments, case.module
    )

    assert torch.isnan(case.embedded[:4]).all()
    torch.testing.assert_close(case.embedded[4:].double(), exact[4:], atol=1e-5, rtol=1e-5)

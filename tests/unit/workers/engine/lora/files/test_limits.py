from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.workers.engine.lora.adapter_writer import BASE, SHAPES, write_adapter
from workers.engine.core.errors import ConfigError
from workers.engine.lora.files.limits import check_limits, largest_adapter_bytes
from workers.engine.lora.files.validate import check_adapter
from workers.engine.lora.tables.adapter_weights import pack_adapter

EVERY = tuple(name.rpartition(".")[2] for name in SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "targets"), [(16, EVERY), (17, EVERY), (1, ("gate_proj", "up_proj"))])
def test_behaviour_34_a_packed_adapter_takes_what_the_formula_says(
    rank: int, targets: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    checked = check_adapter(write_adapter(tmp_path, rank=rank, targets=targets), base=BASE, max_rank=64)

    weights = pack_adapter(checked, shapes=BASE.shapes, layout=BASE.layout, dtype=dtype)

    assert weights.num_bytes == largest_adapter_bytes(BASE, rank=rank, dtype=dtype, target_modules=targets)


def test_behaviour_34_a_budget_below_the_largest_adapter_is_refused_with_the_bytes() -> None:
    # Per layer: q 64, k 48, v 48, o 64, gate 80, up 80, down 80 numbers in and out; rank 20 takes 32.
    needed = 32 * 4 * 2 * 464
    limits = {"rank": 20, "dtype": torch.float32, "target_modules": None}

    check_limits(BASE, **limits, max_bytes=needed)  # type: ignore[arg-type]  # one dict for two calls

    with pytest.raises(
        ConfigError, match=rf"is {needed - 1}, but one adapter .*\(20\) .* takes {needed} bytes"
    ):
        check_limits(BASE, **limits, max_bytes=needed - 1)  # type: ignore[arg-type]  # likewise

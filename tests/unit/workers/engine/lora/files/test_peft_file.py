"""Weights that are no numbers are found in the file, before anything computes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.workers.engine.lora.adapter_writer import BASE, tensors_of, write_adapter
from workers.engine.core.errors import AdapterFileError
from workers.engine.lora.files.validate import validate_adapter

KEY = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused_with_its_tensors_name(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = tensors_of(dtype=dtype)
    tensors[KEY][3, 1] = value
    write_adapter(tmp_path, tensors=tensors)

    with pytest.raises(
        AdapterFileError, match=rf"^adapter 'sql' .*tensor '{KEY}' holds NaN or infinite numbers \(1 of "
    ):
        validate_adapter(tmp_path, base=BASE, max_rank=16, name="sql")

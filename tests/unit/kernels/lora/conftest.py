"""The CPU's LoRA at every level."""

from __future__ import annotations

import pytest
import torch

from kernels.lora.add import LoRAAdd
from kernels.registry import by_name, find
from tests.unit.kernels.conftest import Resolve


@pytest.fixture
def add_lora(resolve: Resolve) -> LoRAAdd:
    """One implementation serves both dtypes."""
    assert find(by_name("lora_add"), "cpu", torch.bfloat16, "torch") is not None
    return resolve("lora_add", torch.float32)

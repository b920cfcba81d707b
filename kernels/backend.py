"""Which implementation serves a device, chosen once per kind of device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from kernels.lora_cpu import add_lora_cpu
from kernels.lora_slots import PackedModuleSlots
from kernels.segments import Pass

AddLoRA = Callable[[Tensor, Tensor, Pass, PackedModuleSlots], None]


@cache
def lora_for(device_type: str) -> AddLoRA:
    """Return the LoRA implementation for a kind of device; ValueError names one that has none."""
    if device_type == "cpu":
        return add_lora_cpu
    raise ValueError(f"no LoRA implementation for device {device_type!r}; run the engine with device='cpu'")

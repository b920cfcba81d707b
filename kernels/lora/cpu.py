"""LoRA on the CPU: one compiled operator for all runs of a pass."""

from __future__ import annotations

from torch import Tensor

from kernels.cpu import library
from kernels.lora.add import LoRAAdd, check
from kernels.lora.segments import Segments
from kernels.lora.tables import PackedModuleSlots


def lora_add_compiled(level: library.Level) -> LoRAAdd:
    """Return the compiled kernel."""
    operator = library.operator("lora_add", level)

    def lora_add(out: Tensor, x: Tensor, segments: Segments, module: PackedModuleSlots) -> None:
        if not segments.passes or module.dtype is None:  # without a dtype no slot holds anything
            return
        check(out, x, segments, module)
        for lora_pass in segments.passes:
            operator(out, x, lora_pass.table, lora_pass.scales, module.table, module.columns)

    return lora_add

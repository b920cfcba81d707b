"""LoRA on the CPU: one compiled operator for all runs of a pass."""

from __future__ import annotations

from torch import Tensor

from kernels.cpu import library
from kernels.lora.add import LoRAAdd, check
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule


def lora_add_compiled(level: library.Level) -> LoRAAdd:
    """Return the compiled kernel."""
    operator = library.operator("lora_add", level)

    def lora_add(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
        check(out, x, segments, module)
        for lora_pass in segments.passes:
            runs = lora_pass.table, lora_pass.scales
            operator(out, x, *runs, module.table, module.first_entry, module.columns)

    return lora_add

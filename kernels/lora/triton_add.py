"""LoRA on a GPU: a shrink and an expand per pass, both over all runs and sub-modules in one launch."""

from __future__ import annotations

from torch import Tensor

from kernels.lora.add import check
from kernels.lora.expand import lora_expand
from kernels.lora.segments import Segments
from kernels.lora.shrink import lora_shrink
from kernels.lora.tables import LoRAModule


def lora_add_triton(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Compute `LoRAAdd` for segments with `block_rows`, which lie on the device; nothing is copied there."""
    check(out, x, segments, module)
    for lora_pass in segments.passes:
        lora_expand(out, lora_shrink(x, module, lora_pass), module, lora_pass)

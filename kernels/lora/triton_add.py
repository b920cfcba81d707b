"""LoRA on a GPU: a shrink and an expand per pass, both over all runs and sub-modules in one launch."""

from __future__ import annotations

from torch import Tensor

from kernels.lora.add import check
from kernels.lora.expand import lora_expand
from kernels.lora.segments import Segments
from kernels.lora.shrink import lora_shrink
from kernels.lora.tables import LoRAModule
from kernels.lora.tiles import BLOCK_ROWS, DeviceTiles


def lora_add_triton(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Compute `LoRAAdd`; the passes are cut into tiles and copied to the device on every call."""
    check(out, x, segments, module)
    for lora_pass in segments.passes:
        tiles = DeviceTiles.of(lora_pass, block_rows=BLOCK_ROWS[0], device=x.device)
        lora_expand(out, lora_shrink(x, module, tiles), module, tiles)

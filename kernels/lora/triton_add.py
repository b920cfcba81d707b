"""LoRA on a GPU: a shrink and an expand per pass, both over all runs and sub-modules in one launch."""

from __future__ import annotations

from torch import Tensor

from kernels.lora.add import check
from kernels.lora.expand import lora_expand
from kernels.lora.expand_norm import expand_norm, expands_into_norm
from kernels.lora.segments import Segments
from kernels.lora.shrink import lora_shrink
from kernels.lora.tables import LoRAModule


class TritonLoRA:
    """`LoRAAdd` and `LoRAInHalves` for segments with `block_rows`, which lie on the device.

    Nothing is copied there. A mix's second pass needs nothing of the first: both can be shrunk at once.
    """

    def __call__(self, out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
        """Compute `LoRAAdd`."""
        check(out, x, segments, module)
        for lora_pass in segments.passes:
            lora_expand(out, lora_shrink(x, module, lora_pass), module, lora_pass)

    def shrink(self, x: Tensor, segments: Segments, module: LoRAModule, *, is_beside: bool) -> list[Tensor]:
        """Compute the first half of every pass."""
        return [lora_shrink(x, module, lora_pass, is_forked=is_beside) for lora_pass in segments.passes]

    def expand(
        self, out: Tensor, shrunk: list[Tensor], segments: Segments, module: LoRAModule, *, is_beside: bool
    ) -> None:
        """Compute the second half of every pass, in their order."""
        for planes, lora_pass in zip(shrunk, segments.passes, strict=True):
            lora_expand(out, planes, module, lora_pass, is_joined=is_beside)

    def expands_into_norm(self, segments: Segments, module: LoRAModule) -> bool:
        """Tell whether these rows are few and their adapters small enough to be expanded row by row."""
        return expands_into_norm(segments, module)

    def expand_norm(
        self,
        residual: Tensor,
        out: Tensor,
        shrunk: list[Tensor],
        segments: Segments,
        module: LoRAModule,
        weight: Tensor,
        eps: float,
        *,
        is_beside: bool,
    ) -> Tensor:
        """Compute the second half of the only pass within the norm."""
        (planes,), (lora_pass,) = shrunk, segments.passes
        return expand_norm(residual, out, planes, module, lora_pass, weight, eps, is_joined=is_beside)


lora_add_triton = TritonLoRA()

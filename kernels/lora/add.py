"""What every LoRA implementation is given, and the check that all of them make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kernels.lora.segments import BLOCK_ROWS, Pass, Segments
from kernels.lora.tables import LoRAModule

LoRAAdd = Callable[[Tensor, Tensor, Segments, LoRAModule], None]
"""Called with out [num_rows, out_features], x [num_rows, in_features], segments and a packed module.

Computes out += scale (B(Ax) + bias) per row, sub-module and adapter of the row, then applies the adapter's
DoRA gain, if it has one; alpha / r is folded into B. Rows must be ordered so that the segments describe them.
Absent sub-modules stay as they are. A row's result depends on that row and its adapters alone: not on what
its neighbours hold. Compiled for a CPU, neither do its bits depend on its place or the size of the batch;
plain torch's do if its products do (`kernels.linear.linear`), and a GPU's where a norm expands.
"""


@runtime_checkable
class LoRAInHalves(Protocol):
    """A `LoRAAdd` whose first half needs no output yet, and can be computed beside what makes it.

    `is_beside` is whether it is: on another stream, which is forked before the first half and joined behind.
    """

    def shrink(self, x: Tensor, segments: Segments, module: LoRAModule, *, is_beside: bool) -> list[Tensor]:
        """Return what `expand` adds, one tensor for each pass."""
        ...

    def expand(
        self, out: Tensor, shrunk: list[Tensor], segments: Segments, module: LoRAModule, *, is_beside: bool
    ) -> None:
        """Add it to the output, in place."""
        ...

    def expands_into_norm(self, segments: Segments, module: LoRAModule) -> bool:
        """Tell whether `expand_norm` serves these; otherwise `expand` does, before a norm."""
        ...

    def expand_norm(
        self,
        residual: Tensor,  # [num_rows, out_features], changed in place
        out: Tensor,  # [num_rows, out_features]
        shrunk: list[Tensor],
        segments: Segments,
        module: LoRAModule,
        weight: Tensor,  # [out_features] float32
        eps: float,
        *,
        is_beside: bool,
    ) -> Tensor:  # [num_rows, out_features]
        """Add the output with its second half to the residual stream, and norm it as `AddRMSNorm` does."""
        ...


def halves_of(lora_add: object) -> LoRAInHalves | None:
    """Return an implementation of `LoRAAdd` as one in halves, if it is."""
    return lora_add if isinstance(lora_add, LoRAInHalves) else None


def check(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Raise ValueError, with the values, for inputs a kernel would misread."""
    expected_x = (segments.num_rows, module.in_features)
    expected_out = (segments.num_rows, module.out_features)
    if tuple(x.shape) != expected_x or tuple(out.shape) != expected_out:
        raise ValueError(
            f"x is {tuple(x.shape)} and out is {tuple(out.shape)}; the segments and the module need "
            f"{expected_x} and {expected_out}"
        )
    if x.dtype is not out.dtype or x.device != out.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device} and out is {out.dtype} on {out.device}; they must agree"
        )
    if module.dtype is not x.dtype:
        raise ValueError(
            f"x is {x.dtype} and the adapters are {module.dtype}; load them in the model's dtype"
        )


def check_tiles(lora_pass: Pass, num_rows: int, device: torch.device) -> int:
    """Return a pass's block_rows; ValueError, with the values, unless GPU kernels can read it as it lies."""
    block_rows, table, scales = lora_pass.block_rows, lora_pass.table, lora_pass.scales
    if block_rows not in BLOCK_ROWS:
        raise ValueError(
            f"the pass has block_rows {block_rows}; build its segments with block_rows={BLOCK_ROWS[0]}, "
            f"or another of {BLOCK_ROWS}"
        )
    for name, tensor, shape, dtype in (
        ("table", table, (table.shape[0], 4), torch.int64),
        ("scales", scales, (num_rows,), torch.float32),
    ):
        if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be contiguous {shape} {dtype}"
            )
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the rows on {device}; give Segments.to(device)")
    return block_rows


def lora_add_meta(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Check only: tensors without contents stay as they are."""
    check(out, x, segments, module)

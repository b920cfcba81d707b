"""What every LoRA implementation is given, and the check that all of them make of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule

LoRAAdd = Callable[[Tensor, Tensor, Segments, LoRAModule], None]
"""Called with out [num_rows, out_features], x [num_rows, in_features], segments and a packed module.

Computes out += scale (B(Ax) + bias) per row, sub-module and adapter of the row, then applies the adapter's
DoRA gain, if it has one; alpha / r is folded into B. Rows must be ordered so that the segments describe them.
Absent sub-modules stay as they are. A row's result depends on that row and its adapters alone: not on what
its neighbours hold. Compiled, neither do its bits depend on its place or the size of the batch; plain
torch's do if its products do (`kernels.linear.linear`).
"""


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


def lora_add_meta(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Check only: tensors without contents stay as they are."""
    check(out, x, segments, module)

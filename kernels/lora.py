"""Add each row's own adapters to a packed module's output, in one batch of many adapters and none."""

from __future__ import annotations

from torch import Tensor

from kernels.backend import lora_for
from kernels.lora_slots import PackedModuleSlots
from kernels.segments import Segments


def add_lora(
    out: Tensor,  # [num_rows, out_features], changed in place
    x: Tensor,  # [num_rows, in_features], same dtype and device
    segments: Segments,
    module: PackedModuleSlots,
) -> None:
    """Compute out += scale B(Ax) per row, sub-module and adapter of the row; alpha / r is folded into B.

    Rows must be ordered so that `segments` describes them. A row's result depends on that row and its
    adapters alone: not on its neighbours, its place or the size of the batch.
    """
    if not segments.passes:
        return
    _check(out, x, segments, module)
    add_pass = lora_for(x.device.type)
    for lora_pass in segments.passes:
        add_pass(out, x, lora_pass, module)


def _check(out: Tensor, x: Tensor, segments: Segments, module: PackedModuleSlots) -> None:
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

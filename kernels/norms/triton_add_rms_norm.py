"""RMSNorm on a GPU: one program a row adds, keeps the sum in the residual stream and norms it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs

MAX_WIDTH = 16_384
"""A row lives in one program's registers; a wider one would spill."""


@triton.jit  # type: ignore[untyped-decorator]
def add_rms_norm_kernel(  # type: ignore[no-untyped-def]
    residual_ptr,  # [num_rows, width], changed in place if ADDS
    delta_ptr,  # [num_rows, width], of the same dtype; not read unless ADDS
    weight_ptr,  # [width] float32
    out_ptr,  # [num_rows, width]
    width,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """residual[row] += delta[row]; out[row] = residual[row] / rms * weight; program (row)."""
    columns = tl.arange(0, BLOCK)
    exists = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    weight = tl.load(weight_ptr + columns, mask=exists, other=0.0)
    wait_for_inputs(PDL)
    row = tl.load(residual_ptr + at, mask=exists, other=0.0)
    if ADDS:
        # Rounded as the stream keeps it: what is normed is what later layers read.
        row = (row.to(tl.float32) + tl.load(delta_ptr + at, mask=exists, other=0.0).to(tl.float32)).to(
            row.dtype
        )
        tl.store(residual_ptr + at, row, mask=exists)
    wide = row.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(out_ptr + at, wide * inverse * weight, mask=exists)


def add_rms_norm_triton(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Compute `AddRMSNorm`; ValueError for tensors that the kernel would misread."""
    check(residual, delta, weight)
    num_rows, width = residual.shape
    out = torch.empty_like(residual)
    if num_rows == 0:
        return out
    block = triton.next_power_of_2(width)
    add_rms_norm_kernel[(num_rows,)](
        residual,
        residual if delta is None else delta,
        weight,
        out,
        width,
        eps,
        ADDS=delta is not None,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
        **dependent_launch(residual.device),
    )
    return out


def check(residual: Tensor, delta: Tensor | None, weight: Tensor) -> None:
    """Raise ValueError, with the values, unless rows are contiguous and widths and dtypes agree."""
    if residual.dim() != 2 or not residual.is_contiguous() or not 1 <= residual.shape[1] <= MAX_WIDTH:
        raise ValueError(
            f"residual is {tuple(residual.shape)} with strides {residual.stride()}; give a contiguous matrix "
            f"of 1 to {MAX_WIDTH} columns"
        )
    if delta is not None and (
        delta.shape != residual.shape or delta.dtype is not residual.dtype or not delta.is_contiguous()
    ):
        raise ValueError(
            f"delta is {tuple(delta.shape)} {delta.dtype}; give a contiguous one like residual, "
            f"{tuple(residual.shape)} {residual.dtype}"
        )
    if weight.shape != residual.shape[1:] or weight.dtype is not torch.float32 or not weight.is_contiguous():
        raise ValueError(
            f"weight is {tuple(weight.shape)} {weight.dtype}; give contiguous float32 [{residual.shape[1]}]"
        )

"""The gates of MLPs on a GPU: silu or gelu of one half of the columns times the other half."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs

BLOCK_COLUMNS = 1024
NUM_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def gate_kernel(  # type: ignore[no-untyped-def]
    gate_up_ptr,  # [num_rows, 2 * width]
    out_ptr,  # [num_rows, width]
    width,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, block b] = act(gate[row, b]) * up[row, b]; program (row, b)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = columns < width
    gate_ptr = gate_up_ptr + row * 2 * width + columns
    wait_for_inputs(PDL)
    gate = tl.load(gate_ptr, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=exists, other=0.0).to(tl.float32)
    inner = gate
    if GELU:
        # (1 + tanh(u)) / 2 = sigmoid(2 u), with u = sqrt(2 / pi) (gate + 0.044715 gate^3).
        inner = gate * (1.5957691216057308 + 0.07135481627260025 * gate * gate)
    # exp of what is not positive cannot overflow.
    small = tl.exp(-tl.abs(inner))
    out = gate * tl.where(inner < 0, small, 1.0) / (1.0 + small) * up
    tl.store(out_ptr + row * width + columns, out, mask=exists)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Compute `swiglu_reference`, rounded once."""
    return _gate(gate_up, gelu=False)


def geglu_triton(gate_up: Tensor) -> Tensor:
    """Compute `geglu_reference`, rounded once."""
    return _gate(gate_up, gelu=True)


def _gate(gate_up: Tensor, *, gelu: bool) -> Tensor:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_contiguous():
        raise ValueError(
            f"gate_up is {tuple(gate_up.shape)} with strides {gate_up.stride()}; give a contiguous matrix "
            "with as many columns of gate as of up"
        )
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        gate_kernel[num_rows, triton.cdiv(width, BLOCK_COLUMNS)](
            gate_up,
            out,
            width,
            GELU=gelu,
            BLOCK=BLOCK_COLUMNS,
            num_warps=NUM_WARPS,
            **dependent_launch(out.device),
        )
    return out

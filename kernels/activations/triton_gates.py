"""The gates of MLPs on a GPU: silu or gelu of gates times ups, in halves or, clamped, in turns."""

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


@triton.jit  # type: ignore[untyped-decorator]
def clamped_gate_kernel(  # type: ignore[no-untyped-def]
    gate_up_ptr,  # [num_rows, 2 * width], gate and up in turns
    out_ptr,  # [num_rows, width]
    width,
    alpha,
    limit,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, block b] = gate sigmoid(alpha gate) (up + 1), both clamped; program (row, b)."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    # Neighbours are read together and parted in registers.
    pairs = 2 * first + tl.arange(0, 2 * BLOCK)
    wait_for_inputs(PDL)
    loaded = tl.load(gate_up_ptr + row * 2 * width + pairs, mask=pairs < 2 * width, other=0.0)
    gate, up = tl.split(tl.reshape(loaded.to(tl.float32), (BLOCK, 2)))
    # Comparisons with NaN are false: it stays.
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    inner = alpha * gate
    small = tl.exp(-tl.abs(inner))
    out = gate * tl.where(inner < 0, small, 1.0) / (1.0 + small) * (up + 1.0)
    columns = first + tl.arange(0, BLOCK)
    tl.store(out_ptr + row * width + columns, out, mask=columns < width)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Compute `swiglu_reference`, rounded once."""
    return _gate(gate_up, gelu=False)


def geglu_triton(gate_up: Tensor) -> Tensor:
    """Compute `geglu_reference`, rounded once."""
    return _gate(gate_up, gelu=True)


def clamped_swiglu_triton(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """Compute `clamped_swiglu_reference`, rounded once."""
    if not limit > 0:
        raise ValueError(f"limit is {limit}; give a positive one")
    out = _empty_product(gate_up)
    num_rows, width = out.shape
    if out.numel():
        clamped_gate_kernel[num_rows, triton.cdiv(width, BLOCK_COLUMNS)](
            gate_up,
            out,
            width,
            alpha,
            limit,
            BLOCK=BLOCK_COLUMNS,
            num_warps=NUM_WARPS,
            **dependent_launch(out.device),
        )
    return out


def _empty_product(gate_up: Tensor) -> Tensor:  # [num_rows, width]
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_contiguous():
        raise ValueError(
            f"gate_up is {tuple(gate_up.shape)} with strides {gate_up.stride()}; give a contiguous matrix "
            "with as many columns of gate as of up"
        )
    shape = gate_up.shape[0], gate_up.shape[1] // 2
    return torch.empty(shape, dtype=gate_up.dtype, device=gate_up.device)


def _gate(gate_up: Tensor, *, gelu: bool) -> Tensor:
    out = _empty_product(gate_up)
    num_rows, width = out.shape
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

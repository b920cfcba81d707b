"""LoRA expand within the norm that follows: what rows that decode add to the residual stream is not written.

A program has a whole row: it reads B for that row alone, from the cache where other rows have read it, and
needs no launch of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.lora.expand import apply_extras, check_expand, lora_expand_reference
from kernels.lora.segments import Pass, Segments
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule
from kernels.norms.add_rms_norm import add_rms_norm_reference
from kernels.norms.triton_add_rms_norm import check

MAX_ROWS = 128
"""About one program for each multiprocessor; more rows read B more often than tiles of them would."""
MAX_RANK = 64
"""Of the largest adapter there may be: a row of rank 64 takes as long here as in a tile of its own."""
MAX_WIDTH = 4096
"""A row with its block of B lives in one program's registers; a wider one would spill."""
_BYTES_OF_B = 1 << 17
"""Of one block of ranks: 64 registers a thread."""
_MAX_WARPS = 16
_BLOCK_RANK = 16


@triton.jit(do_not_specialize=["num_rows", "first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def expand_norm_kernel(  # type: ignore[no-untyped-def]
    residual_ptr,  # [num_rows, width], changed in place
    delta_ptr,  # [num_rows, width], of the same dtype
    weight_ptr,  # [width] float32
    out_ptr,  # [num_rows, width]
    planes_ptr,  # [num_splits, 1, num_rows, planes_width] float32
    table_ptr,  # [num_slots, slot_stride] int64
    slots_ptr,  # [num_rows] int64, -1: no adapter
    scales_ptr,  # [num_rows] float32
    num_rows,
    width,
    eps,
    planes_width,
    first_entry,
    slot_stride,
    NUM_SPLITS: tl.constexpr,
    ENTRY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXTRAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """residual[row] += delta[row] + shrunk[row] B[slot(row)]; out[row] = residual[row] / rms * weight; (row).

    shrunk is the sum of the planes, in an order that the module decides. EXTRAS: then the adapter's bias and
    DoRA gain, if its table entry has their addresses. ALIGNED: the width is a multiple of 16.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    exists = columns < width
    weight = tl.load(weight_ptr + columns, mask=exists, other=0.0)
    slot = tl.load(slots_ptr + row)
    has_adapter = slot >= 0
    entry_ptr = table_ptr + slot * slot_stride + first_entry * ENTRY
    b_address = tl.load(entry_ptr + 1, mask=has_adapter, other=0)
    rank = tl.load(entry_ptr + 2, mask=has_adapter, other=0).to(tl.int32)
    bias_address = tl.load(entry_ptr + 3, mask=has_adapter, other=0)
    dora_address = tl.load(entry_ptr + 4, mask=has_adapter, other=0)
    b_ptr = b_address.to(tl.pointer_type(delta_ptr.dtype.element_ty))
    if ALIGNED:
        b_ptr = tl.multiple_of(b_ptr, 16)
    block = tl.arange(0, BLOCK_R)
    # The first ranks are on their way while what is added is being made.
    b = tl.load(
        b_ptr + block[:, None] * width + columns[None, :],
        mask=(block < rank)[:, None] & exists[None, :],
        other=0.0,
    )
    wait_for_inputs(PDL)
    at = row * width + columns
    delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
    residual = tl.load(residual_ptr + at, mask=exists, other=0.0)
    splits = tl.arange(0, BLOCK_SPLITS)
    plane_ptrs = planes_ptr + (splits.to(tl.int64)[:, None] * num_rows + row) * planes_width
    total = delta.to(tl.float32)
    for start in range(0, rank, BLOCK_R):
        ranks = start + block
        if start > 0:
            b = tl.load(
                b_ptr + ranks[:, None] * width + columns[None, :],
                mask=(ranks < rank)[:, None] & exists[None, :],
                other=0.0,
            )
        planes = tl.load(
            plane_ptrs + ranks[None, :],
            mask=(splits < NUM_SPLITS)[:, None] & (ranks < rank)[None, :],
            other=0.0,
        )
        # Rounded as tiles round it for their product.
        shrunk = tl.sum(planes, axis=0).to(b.dtype).to(tl.float32)
        total += tl.sum(shrunk[:, None] * b.to(tl.float32), axis=0)
    if EXTRAS:
        scale = tl.load(scales_ptr + row)
        finished = apply_extras(total[None, :], scale, bias_address, dora_address, width, columns, exists)
        total = tl.reshape(finished, (BLOCK,))
    # Rounded as it would have been written, then as the stream keeps it.
    total = total.to(delta.dtype).to(tl.float32)
    residual = (residual.to(tl.float32) + total).to(residual.dtype)
    tl.store(residual_ptr + at, residual, mask=exists)
    wide = residual.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(out_ptr + at, wide * inverse * weight, mask=exists)


def expands_into_norm(segments: Segments, module: LoRAModule) -> bool:
    """Tell whether a step's adapters of a module are expanded within the norm that follows."""
    return (
        len(segments.passes) == 1
        and segments.passes[0].row_slots is not None
        and segments.num_rows <= MAX_ROWS
        and module.num_slices == module.num_experts == 1
        and module.max_rank <= MAX_RANK
        and module.out_features <= MAX_WIDTH
    )


def expand_norm(
    residual: Tensor,  # [num_rows, width], changed in place
    delta: Tensor,  # [num_rows, width]
    planes: Tensor,  # as `lora_shrink` returns them
    module: LoRAModule,
    lora_pass: Pass,
    weight: Tensor,  # [width] float32
    eps: float,
    *,
    is_joined: bool = False,
) -> Tensor:  # [num_rows, width]
    """Add delta and its rows' adapters to the residual stream, and norm it.

    `is_joined` is whether the planes were made on another stream.
    """
    check(residual, delta, weight)
    check_expand(delta, planes, module)
    slots = lora_pass.row_slots
    if slots is None or slots.shape != residual.shape[:1] or slots.device != residual.device:
        raise ValueError(
            f"the pass has {None if slots is None else tuple(slots.shape)} slots of rows; it needs one for "
            f"each of {residual.shape[0]} on {residual.device}: give block_rows, and Segments.to(device)"
        )
    num_rows, width = residual.shape
    out = torch.empty_like(residual)
    block = triton.next_power_of_2(width)
    block_rank = min(_BLOCK_RANK, _BYTES_OF_B // (block * delta.element_size()))
    expand_norm_kernel[(num_rows,)](
        residual,
        delta,
        weight,
        out,
        planes,
        module.table,
        slots,
        lora_pass.scales,
        num_rows,
        width,
        eps,
        planes.shape[-1],
        module.first_entry,
        module.table.stride(0),
        NUM_SPLITS=planes.shape[0],
        ENTRY=ENTRY_COLUMNS,
        BLOCK=block,
        BLOCK_R=block_rank,
        BLOCK_SPLITS=triton.next_power_of_2(planes.shape[0]),
        ALIGNED=module.is_aligned,
        EXTRAS=True,
        num_warps=max(1, min(_MAX_WARPS, block * _BLOCK_RANK * delta.element_size() // 8192)),
        **dependent_launch(residual.device, follows_other_stream=is_joined),
    )
    return out


def expand_norm_reference(
    residual: Tensor,  # [num_rows, width], changed in place
    delta: Tensor,  # [num_rows, width]
    planes: Tensor,  # as `lora_shrink` returns them
    module: LoRAModule,
    lora_pass: Pass,
    weight: Tensor,  # [width] float32
    eps: float,
) -> Tensor:  # [num_rows, width]
    """Compute `expand_norm` in plain torch: a copy of delta is expanded into, added and normed."""
    whole = delta.clone()
    lora_expand_reference(whole, planes, module, lora_pass)
    return add_rms_norm_reference(residual, whole, weight, eps)

"""The sum of what experts say on a GPU: gathered, weighed and rounded in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs

BLOCK_COLUMNS = 1024
NUM_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def combine_experts_kernel(  # type: ignore[no-untyped-def]
    answers_ptr,  # [num_rows * NUM_CHOSEN, width]
    places_ptr,  # [num_rows * NUM_CHOSEN] int64
    shares_ptr,  # [num_rows, NUM_CHOSEN] float32
    out_ptr,  # [num_rows, width]
    width,
    NUM_CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, block b] = sum over i of shares[row, i] answers[places[row, i], b]; program (row, b)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = columns < width
    wait_for_inputs(PDL)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        place = tl.load(places_ptr + row * NUM_CHOSEN + choice)
        share = tl.load(shares_ptr + row * NUM_CHOSEN + choice)
        answer = tl.load(answers_ptr + place * width + columns, mask=exists, other=0.0)
        total += share * answer.to(tl.float32)
    tl.store(out_ptr + row * width + columns, total.to(out_ptr.dtype.element_ty), mask=exists)


def combine_experts_triton(
    answers: Tensor,  # [num_rows * num_chosen, width]
    places: Tensor,  # [num_rows * num_chosen] int64
    shares: Tensor,  # [num_rows, num_chosen] float32
) -> Tensor:  # [num_rows, width]
    """Compute `combine_experts_reference`."""
    num_rows, num_chosen = shares.shape
    for name, tensor, shape, dtype in (
        ("answers", answers, (num_rows * num_chosen, answers.shape[-1]), answers.dtype),
        ("places", places, (num_rows * num_chosen,), torch.int64),
        ("shares", shares, (num_rows, num_chosen), torch.float32),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype is not dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} are {tuple(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}; they must "
                f"be contiguous {shape} {dtype}"
            )
    width = answers.shape[1]
    out = torch.empty((num_rows, width), dtype=answers.dtype, device=answers.device)
    if out.numel():
        combine_experts_kernel[num_rows, triton.cdiv(width, BLOCK_COLUMNS)](
            answers,
            places,
            shares,
            out,
            width,
            NUM_CHOSEN=num_chosen,
            BLOCK=BLOCK_COLUMNS,
            num_warps=NUM_WARPS,
            **dependent_launch(answers.device),
        )
    return out

"""The router's choice on a GPU: softmax and the largest of it in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.experts.choose_experts import Choice

NUM_WARPS = 1
"""A row of a router is a few hundred numbers: one warp has its sums without meeting others."""


@triton.jit  # type: ignore[untyped-decorator]
def choose_experts_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # [num_rows, num_experts]
    shares_ptr,  # [num_rows, NUM_CHOSEN] float32
    chosen_ptr,  # [num_rows, NUM_CHOSEN] int64
    num_experts,
    NUM_CHOSEN: tl.constexpr,
    NORMALIZES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """shares[row, i], chosen[row, i] = the i-th largest of softmax(logits[row]); program (row).

    Of equal ones the first comes first. A row with NaN has NaN for shares, and chooses experts all the same.
    """
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    exists = experts < num_experts
    wait_for_inputs(PDL)
    logits = tl.load(logits_ptr + row * num_experts + experts, mask=exists, other=0.0).to(tl.float32)
    logits = tl.where(exists, logits, -3.0e38)
    weights = tl.exp(logits - tl.max(logits, axis=0))
    # All of a row's shares are NaN, or none is.
    shares = tl.where(exists, weights / tl.sum(tl.where(exists, weights, 0.0), axis=0), 0.0)
    left = tl.where(exists, tl.where(shares == shares, shares, 2.0), -1.0)
    places = tl.arange(0, BLOCK_CHOSEN)
    found = tl.zeros((BLOCK_CHOSEN,), dtype=tl.float32)
    numbers = tl.zeros((BLOCK_CHOSEN,), dtype=tl.int32)
    for place in tl.static_range(NUM_CHOSEN):
        expert = tl.min(tl.where(left == tl.max(left, axis=0), experts, BLOCK - 1), axis=0)
        is_it = experts == expert
        share = tl.sum(tl.where(is_it, shares, 0.0), axis=0)
        found = tl.where(places == place, share, found)
        numbers = tl.where(places == place, expert, numbers)
        left = tl.where(is_it, -1.0, left)
    if NORMALIZES:
        found /= tl.sum(found, axis=0)
    first = row * NUM_CHOSEN
    tl.store(shares_ptr + first + places, found, mask=places < NUM_CHOSEN)
    tl.store(chosen_ptr + first + places, numbers, mask=places < NUM_CHOSEN)


def choose_experts_triton(
    logits: Tensor,  # [num_rows, num_experts]
    num_chosen: int,
    normalizes: bool,
) -> Choice:
    """Compute `choose_experts_reference`; of equally likely experts the first comes first."""
    if logits.dim() != 2 or not 0 < num_chosen <= logits.shape[1] or not logits.is_contiguous():
        raise ValueError(
            f"logits are {tuple(logits.shape)} with strides {logits.stride()} for {num_chosen} chosen; "
            "give a contiguous matrix with as many columns at least"
        )
    num_rows, num_experts = logits.shape
    shares = torch.empty((num_rows, num_chosen), dtype=torch.float32, device=logits.device)
    chosen = torch.empty((num_rows, num_chosen), dtype=torch.int64, device=logits.device)
    if num_rows:
        choose_experts_kernel[(num_rows,)](
            logits,
            shares,
            chosen,
            num_experts,
            NUM_CHOSEN=num_chosen,
            NORMALIZES=normalizes,
            BLOCK=triton.next_power_of_2(num_experts),
            BLOCK_CHOSEN=triton.next_power_of_2(num_chosen),
            num_warps=NUM_WARPS,
            **dependent_launch(logits.device),
        )
    return Choice(shares, chosen)

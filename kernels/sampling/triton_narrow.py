"""Copies the few likeliest tokens of a row that top-k or top-p limits, so that its limits are sought there.

The vocabulary is dealt out to as many columns as a copy has places; the threshold taken is one that a quarter
to a half of the columns' maxima reach. No fewer tokens reach it, and seldom more than there are places. A row
whose limits may lie beyond it, as that of a flat distribution, is left to be searched whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling.triton_search import (
    STEPS,
    falling_back,
    is_drawn,
    lowest_of,
    mass_of,
    middle_of,
    rate_of,
    rising,
    share_of,
    tile,
)

PER_ROW = ["largest_ptr", "temperatures_ptr", "top_ks_ptr", "top_ps_ptr", "min_ps_ptr"]


class FewTokens(NamedTuple):
    """What `narrow_kernel` writes."""

    logits: Tensor  # [num_rows, num_few] float32, in vocabulary order, filled up with -inf
    token_ids: Tensor  # [num_rows, num_few] int32
    rest: Tensor  # [num_rows] int64, the mass that is not copied, 0 with top-k; -1: search the row whole

    @classmethod
    def empty(cls, num_rows: int, num_few: int, device: torch.device) -> FewTokens:
        """Return room for them."""
        return cls(
            torch.empty((num_rows, num_few), dtype=torch.float32, device=device),
            torch.empty((num_rows, num_few), dtype=torch.int32, device=device),
            torch.empty((num_rows,), dtype=torch.int64, device=device),
        )


@triton.jit(do_not_specialize=["has_min_ps"], do_not_specialize_on_alignment=PER_ROW)  # type: ignore[untyped-decorator]
def narrow_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # [num_rows, vocab_size] float32
    largest_ptr,  # [num_rows] float32
    temperatures_ptr,  # [num_rows] float32
    top_ks_ptr,  # [num_rows] int64
    top_ps_ptr,  # [num_rows] float64
    min_ps_ptr,  # [num_rows] float32, not read unless has_min_ps
    few_logits_ptr,  # [num_rows, SEGMENTS * COLUMNS] float32, this and the next two as `FewTokens` says
    few_ids_ptr,  # [num_rows, SEGMENTS * COLUMNS] int32
    rest_ptr,  # [num_rows] int64
    vocab_size,
    has_min_ps,
    WIDTH: tl.constexpr,  # of a segment, a multiple of COLUMNS
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """few[row] = the tokens not below a threshold that both limits reach; program (row)."""
    FEW: tl.constexpr = SEGMENTS * COLUMNS
    row = tl.program_id(0).to(tl.int64)
    best, temperature = tl.load(largest_ptr + row), tl.load(temperatures_ptr + row)
    top_k, top_p = tl.load(top_ks_ptr + row), tl.load(top_ps_ptr + row)
    has_top_k = top_k < vocab_size
    is_limited = (has_top_k & (top_k <= FEW // 4)) | ((top_k >= vocab_size) & (top_p < 1.0))
    rest = row * 0 - 1
    if is_drawn(best, temperature) & is_limited:
        min_p = best * 0.0
        if has_min_ps != 0:
            min_p = tl.load(min_ps_ptr + row)
        row_ptr = logits_ptr + row * vocab_size
        low = lowest_of(best, temperature)
        threshold = _threshold(row_ptr, low, best, vocab_size, WIDTH * SEGMENTS, FEW)

        rate = rate_of(temperature)
        counts = tl.zeros([SEGMENTS, COLUMNS], tl.int32)
        inside = tl.zeros([SEGMENTS, COLUMNS], tl.int64)
        outside = tl.zeros([SEGMENTS, COLUMNS], tl.int64)
        for start in range(0, WIDTH, COLUMNS):
            at, logits = tile(row_ptr, start, vocab_size, WIDTH, SEGMENTS, COLUMNS)
            mass = mass_of(logits, best, rate, min_p)
            counts += (logits >= threshold).to(tl.int32)
            inside += tl.where(logits >= threshold, mass, 0)
            outside += tl.where(logits >= threshold, 0, mass)
        each = tl.sum(counts, axis=1)
        count = tl.sum(each, axis=0)
        reached, left_out = tl.sum(tl.sum(inside, axis=1), axis=0), tl.sum(tl.sum(outside, axis=1), axis=0)
        if (count <= FEW) & (has_top_k | (reached >= share_of(reached + left_out, top_p))):
            rest = tl.where(has_top_k, 0, left_out)
            row_logits_ptr, row_ids_ptr = few_logits_ptr + row * FEW, few_ids_ptr + row * FEW
            places = tl.arange(0, FEW)
            tl.store(row_logits_ptr + places, -float("inf"), mask=places >= count)
            tl.store(row_ids_ptr + places, 0, mask=places >= count)
            first = tl.cumsum(each, axis=0) - each
            for start in range(0, WIDTH, COLUMNS):
                at, logits = tile(row_ptr, start, vocab_size, WIDTH, SEGMENTS, COLUMNS)
                stays = (logits >= threshold).to(tl.int32)
                places_here = first[:, None] + tl.cumsum(stays, axis=1) - stays  # below FEW
                tl.store(row_logits_ptr + places_here, logits, mask=stays != 0)
                tl.store(row_ids_ptr + places_here, at, mask=stays != 0)
                first += tl.sum(stays, axis=1)
    tl.store(rest_ptr + row, rest)


@triton.jit  # type: ignore[untyped-decorator]
def _threshold(row_ptr, low, best, vocab_size, SIZE: tl.constexpr, FEW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a logit that a quarter to a half of the columns reach, or `low` if fewer reach that."""
    columns = tl.arange(0, FEW)
    largest = tl.full([FEW], -float("inf"), tl.float32)
    for start in range(0, SIZE, FEW):
        at = start + columns
        largest = tl.maximum(largest, tl.load(row_ptr + at, mask=at < vocab_size, other=-float("inf")))
    below, beyond = rising(low), rising(best) + 1
    if tl.sum((largest >= low).to(tl.int32), axis=0) <= FEW // 2:
        beyond = below + 1
    for step in range(STEPS):
        if beyond - below > 1:
            middle = middle_of(below, beyond, step)
            reached = tl.sum((largest >= falling_back(middle)).to(tl.int32), axis=0)
            if reached >= FEW // 4:
                below = middle
                if reached <= FEW // 2:
                    beyond = below + 1
            else:
                beyond = middle
    return falling_back(below)

"""The draw on a GPU: one program a row finds what its limits leave and walks through it in vocabulary order.

A row's token depends on nothing but the row: `triton_search` says how it is gone through. Where a large
vocabulary is limited, `triton_narrow` copies its likeliest tokens first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling.triton_narrow import PER_ROW, FewTokens, narrow_kernel
from kernels.sampling.triton_search import (
    COLUMNS,
    NUM_WARPS,
    SEGMENTS,
    is_drawn,
    lowest_of,
    mass_of,
    rate_of,
    search,
    share_of,
    tile,
)

MAX_VOCAB_SIZE = 1 << 19
"""Sums of so many weights stay below 2^63."""
_NARROWED_FROM = 4
"""Tiles in the smallest vocabulary whose likeliest tokens are copied first."""


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["has_min_ps"],
    do_not_specialize_on_alignment=[*PER_ROW, "uniforms_ptr", "out_ptr"],
)
def draw_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # [num_rows, vocab_size] float32
    largest_ptr,  # [num_rows] float32
    temperatures_ptr,  # [num_rows] float32
    top_ks_ptr,  # [num_rows] int64
    top_ps_ptr,  # [num_rows] float64
    min_ps_ptr,  # [num_rows] float32, not read unless has_min_ps
    few_logits_ptr,  # [num_rows, SEGMENTS * COLUMNS] float32, as are the next two not read unless NARROWED
    few_ids_ptr,  # [num_rows, SEGMENTS * COLUMNS] int32
    rest_ptr,  # [num_rows] int64
    uniforms_ptr,  # [num_rows] float64
    out_ptr,  # [num_rows] int64
    vocab_size,
    has_min_ps,
    NARROWED: tl.constexpr,
    WIDTH: tl.constexpr,  # of a segment, a multiple of COLUMNS
    BLOCK: tl.constexpr,  # the power of two that holds WIDTH
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[row] = a token as `draw_reference` says, 0 for rows that are not drawn; program (row)."""
    row = tl.program_id(0).to(tl.int64)
    best, temperature = tl.load(largest_ptr + row), tl.load(temperatures_ptr + row)
    token = row * 0
    if is_drawn(best, temperature):
        min_p = best * 0.0
        if has_min_ps != 0:
            min_p = tl.load(min_ps_ptr + row)
        top_k, top_p = tl.load(top_ks_ptr + row), tl.load(top_ps_ptr + row)
        uniform = tl.load(uniforms_ptr + row)
        row_ptr = logits_ptr + row * vocab_size
        rest = row * 0 - 1
        if NARROWED:
            rest = tl.load(rest_ptr + row)
        if rest >= 0:
            few_ptr = few_logits_ptr + row * (SEGMENTS * COLUMNS)
            place = _draw_row(
                few_ptr,
                best,
                temperature,
                top_k,
                top_p,
                min_p,
                uniform,
                rest,
                SEGMENTS * COLUMNS,
                COLUMNS,
                COLUMNS,
                SEGMENTS,
                COLUMNS,
            )
            token = tl.load(few_ids_ptr + row * (SEGMENTS * COLUMNS) + place).to(tl.int64)
        else:
            token = _draw_row(
                row_ptr,
                best,
                temperature,
                top_k,
                top_p,
                min_p,
                uniform,
                row * 0,
                vocab_size,
                WIDTH,
                BLOCK,
                SEGMENTS,
                COLUMNS,
            ).to(tl.int64)
    tl.store(out_ptr + row, token)


@triton.jit  # type: ignore[untyped-decorator]
def _draw_row(  # type: ignore[no-untyped-def]
    row_ptr,
    best,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    rest,
    size,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return a token's place. What stays is above `threshold`, or among the first `quota` that equal it."""
    rate, lowest = rate_of(temperature), lowest_of(best, temperature)
    threshold = best * 0.0 - float("inf")
    if top_k < size:
        threshold = search(row_ptr, lowest, best, top_k, rate, min_p, size, WIDTH, False, SEGMENTS, COLUMNS)
    masses, num_above, num_equal = _scan(
        row_ptr, threshold, best, rate, min_p, size, WIDTH, SEGMENTS, COLUMNS
    )
    each = mass_of(threshold, best, rate, min_p)
    quota = tl.maximum(top_k - tl.sum(num_above, axis=0), 0)
    if top_p < 1.0:
        above = tl.sum(masses, axis=0)
        num_left = tl.minimum(quota, tl.sum(num_equal, axis=0))
        target = share_of(above + num_left * each + rest, top_p)
        if above >= target:
            low = tl.maximum(threshold, lowest)
            threshold = search(row_ptr, low, best, target, rate, min_p, size, WIDTH, True, SEGMENTS, COLUMNS)
            masses, num_above, num_equal = _scan(
                row_ptr, threshold, best, rate, min_p, size, WIDTH, SEGMENTS, COLUMNS
            )
            each = mass_of(threshold, best, rate, min_p)
            above = tl.sum(masses, axis=0)
            quota = tl.sum(num_equal, axis=0)
        # As many of the equal ones as it takes to reach the target.
        quota = tl.minimum(quota, (target - above + each - 1) // tl.maximum(each, 1))

    segments = tl.arange(0, SEGMENTS)
    kept = tl.minimum(tl.maximum(quota - (tl.cumsum(num_equal, axis=0) - num_equal), 0), num_equal)
    through = tl.cumsum(masses + kept * each, axis=0)
    mass = tl.max(through, axis=0)
    target = tl.minimum((uniform * mass.to(tl.float64)).to(tl.int64), mass - 1)
    segment = tl.sum((through <= target).to(tl.int32), axis=0)
    target -= tl.max(tl.where(segments < segment, through, 0), axis=0)
    quota = tl.sum(tl.where(segments == segment, kept, 0), axis=0)

    columns = tl.arange(0, BLOCK)
    at = segment * WIDTH + columns
    logits = tl.load(row_ptr + at, mask=(columns < WIDTH) & (at < size), other=-float("inf"))
    equal = logits == threshold
    stays = (logits > threshold) | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= quota))
    through = tl.cumsum(tl.where(stays, mass_of(logits, best, rate, min_p), 0), axis=0)
    picked = segment * WIDTH + tl.sum((through <= target).to(tl.int32), axis=0)
    return tl.minimum(picked, size - 1)


@triton.jit  # type: ignore[untyped-decorator]
def _scan(  # type: ignore[no-untyped-def]
    row_ptr,
    threshold,
    best,
    rate,
    min_p,
    size,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return each segment's mass above a threshold, how many logits that is, and how many equal it."""
    masses = tl.zeros([SEGMENTS, COLUMNS], tl.int64)
    num_above = tl.zeros([SEGMENTS, COLUMNS], tl.int32)
    num_equal = tl.zeros([SEGMENTS, COLUMNS], tl.int32)
    for start in range(0, WIDTH, COLUMNS):
        _, logits = tile(row_ptr, start, size, WIDTH, SEGMENTS, COLUMNS)
        above = logits > threshold
        masses += tl.where(above, mass_of(logits, best, rate, min_p), 0)
        num_above += above.to(tl.int32)
        num_equal += (logits == threshold).to(tl.int32)
    num_above, num_equal = tl.sum(num_above, axis=1), tl.sum(num_equal, axis=1)
    return tl.sum(masses, axis=1), num_above.to(tl.int64), num_equal.to(tl.int64)


def draw_triton(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    uniforms: Tensor,
    largest: Tensor | None = None,
    /,
) -> Tensor:
    """Draw as `Draw` says; ValueError for tensors that the kernel would misread."""
    best = logits.amax(dim=-1) if largest is None else largest
    check(logits, temperatures, top_ks, top_ps, min_ps, uniforms, best)
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    width, num_few = triton.cdiv(vocab_size, SEGMENTS * COLUMNS) * COLUMNS, SEGMENTS * COLUMNS
    is_narrowed = vocab_size >= _NARROWED_FROM * num_few
    few = FewTokens.empty(num_rows, num_few if is_narrowed else 0, logits.device)
    limits = (best, temperatures, top_ks, top_ps, best if min_ps is None else min_ps)
    has_min_ps = int(min_ps is not None)
    tiles = {"WIDTH": width, "SEGMENTS": SEGMENTS, "COLUMNS": COLUMNS, "num_warps": NUM_WARPS}
    if is_narrowed:
        narrow_kernel[(num_rows,)](logits, *limits, *few, vocab_size, has_min_ps, **tiles)
    draw_kernel[(num_rows,)](
        logits,
        *limits,
        *few,
        uniforms,
        out,
        vocab_size,
        has_min_ps,
        NARROWED=is_narrowed,
        BLOCK=triton.next_power_of_2(width),
        **tiles,
    )
    return out


def check(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    uniforms: Tensor,
    largest: Tensor,
) -> None:
    """Raise ValueError, with the values, unless shapes, dtypes and strides are what the kernel reads."""
    if (
        logits.dim() != 2
        or logits.dtype is not torch.float32
        or not logits.is_contiguous()
        or not 1 <= logits.shape[1] <= MAX_VOCAB_SIZE
    ):
        raise ValueError(
            f"logits are {tuple(logits.shape)} {logits.dtype} with strides {logits.stride()}; give a "
            f"contiguous float32 matrix of 1 to {MAX_VOCAB_SIZE} columns"
        )
    for name, values, dtype in (
        ("temperatures", temperatures, torch.float32),
        ("top_ks", top_ks, torch.int64),
        ("top_ps", top_ps, torch.float64),
        ("min_ps", min_ps, torch.float32),
        ("uniforms", uniforms, torch.float64),
        ("largest", largest, torch.float32),
    ):
        if values is not None and (
            values.shape != logits.shape[:1] or values.dtype is not dtype or not values.is_contiguous()
        ):
            raise ValueError(
                f"{name} are {tuple(values.shape)} {values.dtype} with strides {values.stride()}; give "
                f"contiguous {dtype} [{logits.shape[0]}]"
            )

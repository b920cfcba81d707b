"""The draw on a GPU: one program a row finds what its limits leave and walks through it in vocabulary order.

A row's vocabulary is cut into segments of one width, which a tile [SEGMENTS, COLUMNS] goes through side by
side. Limits are found as thresholds on logits: a few more passes over a row, which the L2 cache holds, where
a sort would need memory. Masses are summed as integers, whose sum has no order: a row's token depends on
nothing but the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_VOCAB_SIZE = 1 << 19
"""Sums of so many weights stay below 2^63 (`_ONE`)."""
SEGMENTS = 256
COLUMNS = 16
NUM_WARPS = 16
_ONE = tl.constexpr(float(1 << 43))
"""The largest weight as an integer; what is 29.8 temperatures under the largest logit weighs nothing."""
_LOWEST = tl.constexpr(31.0)
"""Temperatures under the largest logit beyond which no threshold is sought."""
_VALUE_STEPS = tl.constexpr(16)
_STEPS = tl.constexpr(48)
"""Halvings of a search's interval: by value as long as that is faster, then by the 32 bits of a float."""
_PER_ROW = [
    "largest_ptr",
    "temperatures_ptr",
    "top_ks_ptr",
    "top_ps_ptr",
    "min_ps_ptr",
    "uniforms_ptr",
    "out_ptr",
]


@triton.jit(do_not_specialize=["has_min_ps"], do_not_specialize_on_alignment=_PER_ROW)  # type: ignore[untyped-decorator]
def draw_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # [num_rows, vocab_size] float32
    largest_ptr,  # [num_rows] float32
    temperatures_ptr,  # [num_rows] float32
    top_ks_ptr,  # [num_rows] int64
    top_ps_ptr,  # [num_rows] float64
    min_ps_ptr,  # [num_rows] float32, not read unless has_min_ps
    uniforms_ptr,  # [num_rows] float64
    out_ptr,  # [num_rows] int64
    vocab_size,
    has_min_ps,
    WIDTH: tl.constexpr,  # of a segment, a multiple of COLUMNS
    BLOCK: tl.constexpr,  # the power of two that holds WIDTH
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[row] = a token as `draw_reference` says, 0 for rows that are not drawn; program (row)."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.load(largest_ptr + row)
    temperature = tl.load(temperatures_ptr + row)
    token = row * 0
    # False for NaN too.
    if (temperature > 0.0) & (tl.abs(best) < float("inf")):
        min_p = temperature * 0.0
        if has_min_ps != 0:
            min_p = tl.load(min_ps_ptr + row)
        token = _draw_row(
            logits_ptr + row * vocab_size,
            best,
            tl.maximum(temperature, 1e-37),
            tl.load(top_ks_ptr + row),
            tl.load(top_ps_ptr + row),
            min_p,
            tl.load(uniforms_ptr + row),
            vocab_size,
            WIDTH,
            BLOCK,
            SEGMENTS,
            COLUMNS,
        )
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
    vocab_size,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the token. What stays is above `threshold`, or is among the first `quota` that equal it."""
    lowest = best - _LOWEST * temperature
    threshold = best * 0.0 - float("inf")
    if top_k < vocab_size:
        threshold = _search(
            row_ptr, lowest, best, top_k, temperature, min_p, vocab_size, False, WIDTH, SEGMENTS, COLUMNS
        )
    masses, num_above, num_equal = _scan(
        row_ptr, threshold, best, temperature, min_p, vocab_size, WIDTH, SEGMENTS, COLUMNS
    )
    each = _mass(threshold, best, temperature, min_p)
    quota = tl.maximum(top_k - tl.sum(num_above, axis=0), 0)
    if top_p < 1.0:
        above = tl.sum(masses, axis=0)
        num_left = tl.minimum(quota, tl.sum(num_equal, axis=0))
        target = tl.ceil(top_p * (above + num_left * each).to(tl.float64)).to(tl.int64)
        target = tl.maximum(target, 1)
        if above >= target:
            low = tl.maximum(threshold, lowest)
            threshold = _search(
                row_ptr, low, best, target, temperature, min_p, vocab_size, True, WIDTH, SEGMENTS, COLUMNS
            )
            masses, num_above, num_equal = _scan(
                row_ptr, threshold, best, temperature, min_p, vocab_size, WIDTH, SEGMENTS, COLUMNS
            )
            each = _mass(threshold, best, temperature, min_p)
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
    logits = tl.load(row_ptr + at, mask=(columns < WIDTH) & (at < vocab_size), other=-float("inf"))
    equal = logits == threshold
    stays = (logits > threshold) | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= quota))
    through = tl.cumsum(tl.where(stays, _mass(logits, best, temperature, min_p), 0), axis=0)
    picked = segment * WIDTH + tl.sum((through <= target).to(tl.int32), axis=0)
    return tl.minimum(picked, vocab_size - 1).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _search(  # type: ignore[no-untyped-def]
    row_ptr,
    low,
    best,
    target,
    temperature,
    min_p,
    vocab_size,
    BY_MASS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the largest logit such that those not below it have `target` mass, or are so many; else `low`.

    The ends of the interval are bits of floats in rising order: `below` is reached, `beyond` is not.
    """
    below, beyond = _rising(low), _rising(best) + 1
    for step in range(_STEPS):
        if beyond - below > 1:
            middle = below + (beyond - below) // 2
            if step < _VALUE_STEPS:
                middle = _rising(0.5 * _float(below) + 0.5 * _float(beyond))
            middle = tl.minimum(tl.maximum(middle, below + 1), beyond - 1)
            reached, least, most = _measure(
                row_ptr,
                _float(middle),
                best,
                temperature,
                min_p,
                vocab_size,
                BY_MASS,
                WIDTH,
                SEGMENTS,
                COLUMNS,
            )
            # Only logits that are there can be thresholds: the interval shrinks to the next ones.
            if reached >= target:
                below = _rising(least)
                if reached == target:
                    beyond = below + 1
            else:
                beyond = tl.maximum(_rising(most), below) + 1
    return _float(below)


@triton.jit  # type: ignore[untyped-decorator]
def _measure(  # type: ignore[no-untyped-def]
    row_ptr,
    threshold,
    best,
    temperature,
    min_p,
    vocab_size,
    BY_MASS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the mass or number of the logits not below a threshold, their least, and the most below it."""
    total = tl.zeros([SEGMENTS, COLUMNS], tl.int64 if BY_MASS else tl.int32)
    least = tl.full([SEGMENTS, COLUMNS], float("inf"), tl.float32)
    most = tl.full([SEGMENTS, COLUMNS], -float("inf"), tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        logits = _tile(row_ptr, start, vocab_size, WIDTH, SEGMENTS, COLUMNS)
        reaches = logits >= threshold
        if BY_MASS:
            total += tl.where(reaches, _mass(logits, best, temperature, min_p), 0)
        else:
            total += reaches.to(tl.int32)
        least = tl.minimum(least, tl.where(reaches, logits, float("inf")))
        most = tl.maximum(most, tl.where(reaches, -float("inf"), logits))
    reached = tl.sum(tl.sum(total, axis=1), axis=0).to(tl.int64)
    return reached, tl.min(tl.min(least, axis=1), axis=0), tl.max(tl.max(most, axis=1), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _scan(  # type: ignore[no-untyped-def]
    row_ptr,
    threshold,
    best,
    temperature,
    min_p,
    vocab_size,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return each segment's mass above a threshold, how many logits that is, and how many equal it."""
    masses = tl.zeros([SEGMENTS, COLUMNS], tl.int64)
    num_above = tl.zeros([SEGMENTS, COLUMNS], tl.int32)
    num_equal = tl.zeros([SEGMENTS, COLUMNS], tl.int32)
    for start in range(0, WIDTH, COLUMNS):
        logits = _tile(row_ptr, start, vocab_size, WIDTH, SEGMENTS, COLUMNS)
        above = logits > threshold
        masses += tl.where(above, _mass(logits, best, temperature, min_p), 0)
        num_above += above.to(tl.int32)
        num_equal += (logits == threshold).to(tl.int32)
    num_above, num_equal = tl.sum(num_above, axis=1), tl.sum(num_equal, axis=1)
    return tl.sum(masses, axis=1), num_above.to(tl.int64), num_equal.to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    row_ptr, start, vocab_size, WIDTH: tl.constexpr, SEGMENTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return COLUMNS logits of every segment; what is past the vocabulary is forbidden."""
    at = tl.arange(0, SEGMENTS)[:, None] * WIDTH + start + tl.arange(0, COLUMNS)[None, :]
    return tl.load(row_ptr + at, mask=at < vocab_size, other=-float("inf"))


@triton.jit
def _mass(logits, best, temperature, min_p):  # type: ignore[no-untyped-def]
    """Return exp((logit - best) / temperature) as an integer, 0 below min-p."""
    weights = tl.exp((logits - best) / temperature)
    return (tl.where(weights >= min_p, weights, 0.0) * _ONE).to(tl.int64)


@triton.jit
def _rising(value):  # type: ignore[no-untyped-def]
    """Return a float's bits as an integer that rises with it; both zeros give 0."""
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(bits == -1, 0, bits).to(tl.int64)


@triton.jit
def _float(rising):  # type: ignore[no-untyped-def]
    """Return the float whose bits `_rising` gives."""
    bits = rising.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


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
    width = triton.cdiv(vocab_size, SEGMENTS * COLUMNS) * COLUMNS
    draw_kernel[(num_rows,)](
        logits,
        best,
        temperatures,
        top_ks,
        top_ps,
        best if min_ps is None else min_ps,
        uniforms,
        out,
        vocab_size,
        int(min_ps is not None),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        SEGMENTS=SEGMENTS,
        COLUMNS=COLUMNS,
        num_warps=NUM_WARPS,
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

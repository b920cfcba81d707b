"""What a program does with one row of logits: go through it in tiles, weigh it, and find its limits.

A row is cut into segments of one width, which a tile [SEGMENTS, COLUMNS] goes through side by side. A limit
is found as a threshold on logits: a few more passes over a row, which the L2 cache holds, where a sort would
need memory. Masses are summed as integers, whose sum has no order.
"""

from __future__ import annotations

import triton
import triton.language as tl

SEGMENTS = 256
COLUMNS = 16
NUM_WARPS = 16
_ONE = tl.constexpr(float(1 << 43))
"""The largest weight as an integer; what is 29.8 temperatures under the largest logit weighs nothing."""
_RANGE = tl.constexpr(31.0)
"""Temperatures under the largest logit beyond which no threshold is sought."""
_VALUE_STEPS = tl.constexpr(16)
STEPS = tl.constexpr(48)
"""Halvings of a search's interval: by value as long as that is faster, then by the 32 bits of a float."""


@triton.jit
def is_drawn(best, temperature):  # type: ignore[no-untyped-def]
    """Tell whether a row has a draw; NaN has none."""
    return (temperature > 0.0) & (tl.abs(best) < float("inf"))


@triton.jit
def rate_of(temperature):  # type: ignore[no-untyped-def]
    """Return log2(e) / temperature, which is finite."""
    return 1.4426950408889634 / tl.maximum(temperature, 1e-37)


@triton.jit
def lowest_of(best, temperature):  # type: ignore[no-untyped-def]
    """Return a logit below which all weigh nothing."""
    return best - _RANGE * temperature


@triton.jit
def mass_of(logits, best, rate, min_p):  # type: ignore[no-untyped-def]
    """Return exp((logit - best) / temperature) as an integer, 0 below min-p."""
    weights = tl.exp2((logits - best) * rate)
    return (tl.where(weights >= min_p, weights, 0.0) * _ONE).to(tl.int64)


@triton.jit
def share_of(mass, top_p):  # type: ignore[no-untyped-def]
    """Return the mass that top-p asks for: a token stays if less lies before it."""
    return tl.maximum(tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64), 1)


@triton.jit  # type: ignore[untyped-decorator]
def tile(row_ptr, start, size, width, SEGMENTS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return places [SEGMENTS, COLUMNS] and their logits; what is past the row's end is forbidden."""
    at = tl.arange(0, SEGMENTS)[:, None] * width + start + tl.arange(0, COLUMNS)[None, :]
    return at, tl.load(row_ptr + at, mask=at < size, other=-float("inf"))


@triton.jit
def rising(value):  # type: ignore[no-untyped-def]
    """Return a float's bits as an integer that rises with it; both zeros give 0."""
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(bits == -1, 0, bits).to(tl.int64)


@triton.jit
def falling_back(bits):  # type: ignore[no-untyped-def]
    """Return the float whose bits `rising` gives."""
    bits = bits.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(below, beyond, step):  # type: ignore[no-untyped-def]
    """Return bits inside an interval that has some."""
    middle = below + (beyond - below) // 2
    if step < _VALUE_STEPS:
        middle = rising(0.5 * falling_back(below) + 0.5 * falling_back(beyond))
    return tl.minimum(tl.maximum(middle, below + 1), beyond - 1)


@triton.jit  # type: ignore[untyped-decorator]
def search(  # type: ignore[no-untyped-def]
    row_ptr,
    low,
    best,
    target,
    rate,
    min_p,
    size,
    width,
    BY_MASS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the largest logit such that those not below it have `target` mass, or are so many; else `low`.

    The ends of the interval are bits of floats in rising order: `below` is reached, `beyond` is not.
    """
    below, beyond = rising(low), rising(best) + 1
    for step in range(STEPS):
        if beyond - below > 1:
            threshold = falling_back(middle_of(below, beyond, step))
            reached, least, most = _measure(
                row_ptr, threshold, best, rate, min_p, size, width, BY_MASS, SEGMENTS, COLUMNS
            )
            # Only logits that are there can be thresholds: the interval shrinks to the next ones.
            if reached >= target:
                below = rising(least)
                if reached == target:
                    beyond = below + 1
            else:
                beyond = tl.maximum(rising(most), below) + 1
    return falling_back(below)


@triton.jit  # type: ignore[untyped-decorator]
def _measure(  # type: ignore[no-untyped-def]
    row_ptr,
    threshold,
    best,
    rate,
    min_p,
    size,
    width,
    BY_MASS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the mass or number of the logits not below a threshold, their least, and the most below it."""
    total = tl.zeros([SEGMENTS, COLUMNS], tl.int64 if BY_MASS else tl.int32)
    least = tl.full([SEGMENTS, COLUMNS], float("inf"), tl.float32)
    most = tl.full([SEGMENTS, COLUMNS], -float("inf"), tl.float32)
    for start in range(0, width, COLUMNS):
        _, logits = tile(row_ptr, start, size, width, SEGMENTS, COLUMNS)
        reaches = logits >= threshold
        if BY_MASS:
            total += tl.where(reaches, mass_of(logits, best, rate, min_p), 0)
        else:
            total += reaches.to(tl.int32)
        least = tl.minimum(least, tl.where(reaches, logits, float("inf")))
        most = tl.maximum(most, tl.where(reaches, -float("inf"), logits))
    reached = tl.sum(tl.sum(total, axis=1), axis=0).to(tl.int64)
    return reached, tl.min(tl.min(least, axis=1), axis=0), tl.max(tl.max(most, axis=1), axis=0)

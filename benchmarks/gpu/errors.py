"""How far a result may be from the one in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_FLOAT32_UNIT = 2e-6
_RATIO_TO_PLAIN = 1.5


class Verdict(NamedTuple):
    """An error, what it may be, and whether it is no more than that and no value is missing."""

    error: float
    limit: float
    passed: bool


def judge(
    out: Tensor,
    plain: Tensor,  # by plain torch in the dtype of `out`, rounded where torch rounds
    exact: Tensor,  # in float64
    num_terms: int,  # that each value is a sum of
) -> Verdict:
    """Hold float32 to 2e-6 sqrt(num_terms) of its size, other dtypes to 1.5 times the error of torch."""
    size = float(exact.square().mean().sqrt()) or 1.0
    if out.dtype is torch.float32:
        error = float(((out.double() - exact).abs() / (size + exact.abs())).max())
        limit = _FLOAT32_UNIT * num_terms**0.5
        return Verdict(error, limit, error <= limit)
    unit = torch.finfo(out.dtype).eps
    mean, plain_mean = (float((one.double() - exact).square().mean().sqrt()) / size for one in (out, plain))
    most, plain_most = (
        float(((one.double() - exact).abs() / (size + exact.abs())).max()) for one in (out, plain)
    )
    ratio = mean / max(plain_mean, unit / 8)
    # The largest of all is one value's luck: a unit in the last place is allowed on top.
    passed = ratio <= _RATIO_TO_PLAIN and most <= _RATIO_TO_PLAIN * plain_most + unit
    return Verdict(ratio, _RATIO_TO_PLAIN, passed)


def same(out: Tensor, expected: Tensor) -> Verdict:
    """Hold a result to the same bits; the error is the share of values that differ."""
    differing = float((out != expected).double().mean()) if out.shape == expected.shape else 1.0
    return Verdict(differing, 0.0, differing == 0.0)

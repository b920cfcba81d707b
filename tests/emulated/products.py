"""Products of torch that sum in another order from 16 rows on, as oneDNN's do with AMX and MKL's with AVX512.

LORAYARD_TESTS_EMULATE=amx_products has a whole run of pytest multiply so, on a processor whose own products
keep a row's bits: what asks for equal bits must ask only where they are to be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "amx_products"
FROM_ROWS = 16
_DTYPES = (torch.float32, torch.bfloat16)
_linear = F.linear  # as torch has it


def is_changed(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these is one that a processor with AMX or AVX512 sums otherwise."""
    is_inference = not (x.requires_grad or weight.requires_grad or x.is_meta)
    return is_inference and x.dtype in _DTYPES and x.numel() >= FROM_ROWS * x.shape[-1] > 0


def halved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + bias in float32, in one sum for few rows and in two halves for more."""
    is_many = x.numel() >= FROM_ROWS * x.shape[-1]
    x, wide, middle = x.float(), weight.float(), x.shape[-1] // 2 if is_many else 0
    out = _linear(x[..., :middle], wide[:, :middle]) + _linear(x[..., middle:], wide[:, middle:])
    return (out if bias is None else out + bias.float()).to(weight.dtype)


@contextmanager
def whole_run() -> Iterator[None]:
    """Have `F.linear` and the product of two matrices sum in two halves for a while."""
    matmul = Tensor.__matmul__

    def halved_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        return (halved if is_changed(input, weight) else _linear)(input, weight, bias)

    def halved_matmul(one: Tensor, other: Tensor) -> Tensor:
        if one.dim() != 2 or other.dim() != 2 or not is_changed(one, other):
            return matmul(one, other)
        return halved(one, other.T)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", halved_linear)
        patch.setattr(Tensor, "__matmul__", halved_matmul)
        yield

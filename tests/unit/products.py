"""Whether torch's products leave a row its bits here, and how nearly equal rows must be if they do not.

Our compiled kernels compute a row alike in every batch. MKL's and oneDNN's products do so on some processors
only: they choose the order of a sum by the shape of the whole product. So a test that goes through them asks
for equal bits if a trial finds that they keep them, and for the tolerances below elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import registry
from kernels.cpu import library
from kernels.linear.linear import Linear

Product = Callable[[Tensor], Tensor]

# Sums are in float32 either way; a bfloat16 result may be rounded to the neighbour on either side.
_ATOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8}
_RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-7}
# bfloat16: twice what was seen with every sum of 16 rows and more rounded twice.
_LOGIT_ATOL = {torch.float32: 1e-4, torch.bfloat16: 0.5}
SHAPES = [(64, 16), (48, 33), (16, 64), (128, 64), (259, 64), (259, 72), (100, 96), (64, 112), (960, 576)]
"""Weights that are tried, [out_features, in_features]: about those of the tests."""
_NUM_ROWS = 200
_BATCHES = {
    # Multiples of four, as the engine pads float32 rows: see `kernels/linear/row_padding.py`.
    torch.float32: (4, 8, 12, 16, 20, 24, 28, 32, 36, 48, 64, 100, 128),
    torch.bfloat16: (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128),
}


def keeps_rows(dtype: torch.dtype) -> bool:
    """Whether a row's product has the same bits here in batches of many sizes and at every place in them."""
    return _keeps_rows(dtype, torch.get_num_threads())


@cache
def _keeps_rows(dtype: torch.dtype, num_threads: int) -> bool:
    """Try it, for no library promises it; an order of sums may be chosen by the number of threads too."""
    weights = [random(*shape).to(dtype) for shape in SHAPES]
    kernel = registry.resolve("linear", "cpu", dtype, library.level())
    return all(
        is_kept(multiply, weight)
        for weight in weights
        for multiply in (Linear(weight, kernel=kernel), partial(F.linear, weight=weight))
    )


def is_kept(multiply: Product, weight: Tensor) -> bool:
    """Whether a product with this weight gives rows their bits by themselves."""
    x = random(_NUM_ROWS, weight.shape[1]).to(weight.dtype)
    whole = multiply(x)
    if not torch.equal(multiply(x.flip(0)).flip(0), whole):
        return False
    batches = _batches(weight.dtype)
    return all(torch.equal(multiply(x[start:end]), whole[start:end]) for start, end in batches)


def random(*shape: int) -> Tensor:
    """Normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6))


def _batches(dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    for num_rows in _BATCHES[dtype]:
        for start in (0, 3, _NUM_ROWS - num_rows):
            yield start, start + num_rows


def assert_same_rows(
    one: Tensor, other: Tensor, *, multiplied_in: torch.dtype | None, size: float = 1.0
) -> None:
    """Assert equal bits; nearly equal numbers if torch multiplied in a dtype whose rows it does not keep.

    `multiplied_in` is None if compiled kernels multiplied; `size` is that of what the rows are sums of.
    """
    if multiplied_in is None or keeps_rows(multiplied_in):
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, atol=size * _ATOL[one.dtype], rtol=_RTOL[one.dtype])


def assert_same_logits(
    one: Tensor,  # [num_tokens, vocab_size] float32, what a greedy answer was chosen from
    other: Tensor,  # the same of another answer to the same request
    dtype: str,
) -> None:
    """Assert that a model of this dtype, its linear layers being torch's, gave one request the same answer.

    Logits have equal bits if products keep rows and attention is compiled. Elsewhere they are nearly equal
    up to the first token that the two chose differently, as they only can if its two best logits are that
    near each other; what comes after it answers another text.
    """
    if engine_keeps_rows(dtype):
        assert torch.equal(one, other)
        return
    agree = one.argmax(dim=-1) == other.argmax(dim=-1)
    end = int(agree.long().cumprod(dim=0).sum()) + 1
    torch.testing.assert_close(one[:end], other[:end], atol=_LOGIT_ATOL[getattr(torch, dtype)], rtol=0)


def engine_keeps_rows(dtype: str) -> bool:
    """Whether an engine's logits of a row have the same bits whatever is computed beside it."""
    return library.level() != "torch" and keeps_rows(getattr(torch, dtype))

"""The head: float32 logits, whatever the weights are kept in; equal bf16 logits would make greedy a toss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library


class HeadKernel(NamedTuple):
    """A product that yields float32 logits, and the dtype in which it reads the head."""

    weight_dtype: torch.dtype
    multiply: Callable[[Tensor, Tensor], Tensor]  # called as `logits_reference`


def logits_compiled(level: library.Level) -> HeadKernel:
    """Return the CPU's compiled kernel: it reads a bfloat16 head where it lies and sums in float32."""
    return HeadKernel(torch.bfloat16, library.operator("logits", level))


def logits_by_cublas(
    x: Tensor,  # [num_rows, hidden_size], half precision
    weight: Tensor,  # [vocab_size, hidden_size], the same
) -> Tensor:  # [num_rows, vocab_size] float32
    """Return x W^T with float32 sums, never rounded; the head needs no float32 copy."""
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def logits_reference(
    x: Tensor,  # [num_rows, hidden_size]
    weight: Tensor,  # [vocab_size, hidden_size]
) -> Tensor:  # [num_rows, vocab_size] float32
    """Return x W^T in float32."""
    return F.linear(x.float(), weight.float())


PLAIN_HEAD = HeadKernel(torch.float32, logits_reference)
"""Plain torch has no product of bfloat16 with float32 sums: it gets a float32 copy of the head."""


class Head:
    """Turns the last hidden states into logits."""

    def __init__(
        self,
        weight: Tensor,  # [vocab_size, hidden_size], tied or not
        kernel: HeadKernel,
    ) -> None:
        self.weight = weight.to(kernel.weight_dtype)
        self._multiply = kernel.multiply

    def __call__(
        self,
        x: Tensor,  # [num_rows, hidden_size]
    ) -> Tensor:  # [num_rows, vocab_size] float32
        """Multiply."""
        return self._multiply(x, self.weight)

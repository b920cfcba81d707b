"""The head: float32 logits, whatever the weights are kept in; equal bf16 logits would make greedy a toss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library


class Head:
    """Turns the last hidden states into logits.

    The compiled kernel reads a bfloat16 head where it lies, tied or not, and sums in float32; plain torch has
    no such product and gets a float32 copy of its own.
    """

    def __init__(self, weight: Tensor) -> None:  # [vocab_size, hidden_size]
        is_compiled = weight.dtype is torch.bfloat16 and library.serves(weight)
        self.weight = weight if is_compiled else weight.float()

    def __call__(
        self,
        x: Tensor,  # [num_rows, hidden_size]
    ) -> Tensor:  # [num_rows, vocab_size] float32
        """Multiply."""
        if self.weight.dtype is torch.bfloat16:
            return torch.ops.lorayard.logits.default(x, self.weight)
        return logits_reference(x, self.weight)


def logits_reference(x: Tensor, weight: Tensor) -> Tensor:
    """Compute logits in plain torch."""
    return F.linear(x.float(), weight.float())

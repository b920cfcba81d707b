"""The head: float32 logits, whatever the weights are kept in; equal bf16 logits would make greedy a toss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library

_BLOCK = 32
"""Tokens of a packed head that lie together: two tiles of AMX."""


class PackedHead(NamedTuple):
    """A layout for a head that stays, and the product that reads it."""

    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, int], Tensor]  # x, the packed head, vocab_size


class HeadKernel(NamedTuple):
    """A product that yields float32 logits, and the dtype in which it reads the head."""

    weight_dtype: torch.dtype
    multiply: Callable[[Tensor, Tensor], Tensor]  # called as `logits_reference`
    packed: PackedHead | None = None  # faster, for a second copy of the head


def logits_compiled(level: library.Level) -> HeadKernel:
    """Return the CPU's compiled kernel: it reads a bfloat16 head where it lies and sums in float32."""
    return HeadKernel(torch.bfloat16, library.operator("logits", level))


def logits_by_onednn(level: library.Level, *, in_pairs: bool) -> HeadKernel:
    """Return the compiled kernel with oneDNN's product beside it, which multiplies in AMX's tiles.

    `in_pairs` packs the head as tiles read it; without it oneDNN multiplies on any processor, slowly.
    """
    multiply = library.operator("packed_logits", level)
    packed = PackedHead(
        partial(pack_head, in_pairs=in_pairs),
        lambda x, weight, vocab_size: multiply(x, weight, vocab_size, in_pairs),
    )
    return logits_compiled(level)._replace(packed=packed)


def logits_on_cpu(level: library.Level) -> HeadKernel:
    """Return oneDNN's product where it has AMX's tiles, else the compiled kernel."""
    if level == "avx512_bf16" and library.operator("has_tiles", level)():
        return logits_by_onednn(level, in_pairs=True)
    return logits_compiled(level)


def pack_head(
    weight: Tensor,  # [vocab_size, hidden_size] bfloat16
    *,
    in_pairs: bool,
) -> Tensor:  # [num_blocks, hidden_size, _BLOCK]
    """Lay blocks of tokens out hidden element by hidden element, filled up with zeros.

    `in_pairs` keeps two elements of a token together, which makes a block [hidden_size / 2, _BLOCK, 2].
    """
    vocab_size, hidden_size = weight.shape
    if in_pairs and hidden_size % 2:
        raise ValueError(f"the head is {tuple(weight.shape)}; only an even hidden_size is packed in pairs")
    step = 2 if in_pairs else 1
    filled = F.pad(weight, (0, 0, 0, -vocab_size % _BLOCK))
    blocks = filled.view(-1, _BLOCK, hidden_size // step, step).transpose(1, 2)
    return blocks.reshape(-1, hidden_size, _BLOCK).contiguous()


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
        layout = kernel.packed
        if layout is not None and weight.shape[1] % 2 == 0:  # tiles multiply pairs
            packed = layout.pack(self.weight)
            self._multiply = lambda x, weight: layout.multiply(x, packed, weight.shape[0])

    def __call__(
        self,
        x: Tensor,  # [num_rows, hidden_size]
    ) -> Tensor:  # [num_rows, vocab_size] float32
        """Multiply."""
        return self._multiply(x, self.weight)

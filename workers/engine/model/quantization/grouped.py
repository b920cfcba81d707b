"""What AWQ and GPTQ have in common: codes packed into int32 words, scales and zeros per group of inputs."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight, pack_codes
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _not_empty(group_size: int) -> int:
    if group_size == 0:
        raise ValueError("a group has at least one input, and -1 means all")
    return group_size


GroupSize = Annotated[int, Field(ge=-1), AfterValidator(_not_empty)]
"""Inputs that share a scale; -1 means all of them."""


def group_size_of(configured: int, in_features: int, place: str) -> int:
    """Return the inputs of a group, -1 meaning all; refuse what leaves a group unfilled."""
    size = in_features if configured == -1 else configured
    if in_features % size:
        raise CheckpointError(
            f"{place}: group_size {size} does not divide its {in_features} inputs; "
            "use a checkpoint with a group_size that does"
        )
    return size


def unpack_words(
    words: Tensor,  # [num_rows, num_words] int32
    bits: int,
) -> Tensor:  # [num_rows, num_words, 32 / bits] uint8
    """Take the codes out of their words, the lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1).to(torch.uint8)


def read_words(reader: CheckpointReader, name: str, shape: tuple[int, int]) -> Tensor:
    """Read a tensor of packed codes."""
    return reader.read_stored(name, shape, (torch.int32,))


def grouped_weight(
    codes: Tensor,  # [out_features, in_features] uint8, inputs in the order of `columns`
    scales: Tensor,  # [num_groups, out_features]
    zeros: Tensor,  # [num_groups, out_features] uint8
    bits: int,
    columns: Tensor | None = None,  # [in_features] int32
) -> QuantizedWeight:
    """Return the weight (code - zero) * scale in the kernels' layout."""
    in_features = codes.shape[1]
    return QuantizedWeight(
        in_features=in_features,
        codes=pack_codes(codes) if bits == 4 else codes.contiguous(),
        scales=scales.float().t().flatten(),
        zeros=zeros.t().flatten(),
        table=IDENTITY_TABLE if bits == 4 else None,
        block=in_features // scales.shape[0],
        columns=columns,
    )

"""Random codes of each layout, made where they are to lie, to measure a quantised geometry."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kernels.linear.quantized_weight import IDENTITY_TABLE, SPAN, QuantizedWeight
from workers.engine.model.quantization.awq import AwqCheckpoint
from workers.engine.model.quantization.config import QuantizedCheckpoint
from workers.engine.model.quantization.gptq import GptqCheckpoint
from workers.engine.model.quantization.grouped import group_size_of
from workers.engine.model.quantization.in_flight import NF4_BLOCK, NF4_TABLE
from workers.engine.model.quantization.mxfp4 import FP4_TABLE, MX_BLOCK, Mxfp4Checkpoint
from workers.engine.model.random_weights import RandomCodes

_SCALE = 0.02
"""About what a weight is in size, as in plain random weights."""


def random_codes(wanted: str | None, checkpoint: QuantizedCheckpoint | None) -> RandomCodes | None:
    """Return what makes the codes that a checkpoint would have, or that it would get; None: it stays plain.

    `wanted` is `EngineConfig.quantization`, already held to fit the checkpoint.
    """
    if isinstance(checkpoint, AwqCheckpoint | GptqCheckpoint):
        bits = checkpoint.bits if isinstance(checkpoint, GptqCheckpoint) else 4
        return partial(_grouped, bits=bits, group_size=checkpoint.group_size)
    if isinstance(checkpoint, Mxfp4Checkpoint):
        return partial(_tabled, table=FP4_TABLE / FP4_TABLE.max(), block=MX_BLOCK)
    is_8bit = wanted == "int8" or (checkpoint is not None and checkpoint.load_in_8bit)
    if is_8bit:
        return partial(_grouped, bits=8, group_size=-1)
    if wanted is None and checkpoint is None:
        return None
    return partial(_tabled, table=NF4_TABLE, block=NF4_BLOCK)


def _grouped(
    shape: tuple[int, ...], generator: torch.Generator, *, bits: int, group_size: int
) -> QuantizedWeight:
    out_features, in_features = shape
    block = group_size_of(group_size, in_features, "random weights")
    num_blocks = out_features * in_features // block
    middle = 1 << (bits - 1)
    device = generator.device
    weight = QuantizedWeight(
        in_features=in_features,
        codes=_bytes(generator, out_features, in_features, bits),
        scales=torch.full((num_blocks,), _SCALE / middle),
        zeros=torch.full((num_blocks,), middle, dtype=torch.uint8),
        table=IDENTITY_TABLE if bits == 4 else None,
        block=block,
    )
    return weight.to(device)


def _tabled(
    shape: tuple[int, ...], generator: torch.Generator, *, table: Tensor, block: int
) -> QuantizedWeight:
    out_features, in_features = shape
    weight = QuantizedWeight(
        in_features=in_features,
        codes=_bytes(generator, out_features, in_features, bits=4),
        scales=torch.full((-(-out_features * in_features // block),), 2 * _SCALE),
        zeros=None,
        table=table,
        block=block,
    )
    return weight.to(generator.device)


def _bytes(generator: torch.Generator, num_rows: int, num_columns: int, bits: int) -> Tensor:
    width = num_columns if bits == 8 else -(-num_columns // SPAN) * SPAN // 2
    made = torch.empty((num_rows, width), dtype=torch.uint8, device=generator.device)
    return made.random_(generator=generator)

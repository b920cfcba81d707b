"""Quantises plain weights while they load, by round-to-nearest: int8 rows, or NF4 as bitsandbytes does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight, pack_codes
from workers.engine.core.errors import ConfigError
from workers.engine.model.quantization.config import QuantizedCheckpoint
from workers.engine.model.quantization.int8 import int8_weight

Quantize = Callable[[Tensor], QuantizedWeight]

# Quantiles of a normal distribution, zero among them, scaled to [-1, 1] (QLoRA, Dettmers et al., 2023).
NF4_TABLE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
NF4_BLOCK = 64
_TINY = 1e-38  # keeps a block of zeros from dividing by zero


def quantize_int8(
    weight: Tensor,  # [out_features, in_features]
) -> QuantizedWeight:
    """Quantise each row to int8 by its largest magnitude."""
    plain = weight.float()
    scales = plain.abs().amax(dim=1) / 127
    codes = torch.round(plain / scales.clamp(min=_TINY).unsqueeze(1)).clamp_(-127, 127)
    return int8_weight(codes.to(torch.int8), scales)


def quantize_nf4(
    weight: Tensor,  # [out_features, in_features]
) -> QuantizedWeight:
    """Quantise each 64 consecutive weights to the nearest of 16 values times their largest magnitude."""
    out_features, in_features = weight.shape
    blocks = torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % NF4_BLOCK))
    blocks = blocks.view(-1, NF4_BLOCK)
    scales = blocks.abs().amax(dim=1)
    scaled = blocks * (1.0 / scales.clamp(min=_TINY).unsqueeze(1))
    codes = torch.bucketize(scaled.flatten(), (NF4_TABLE[:-1] + NF4_TABLE[1:]) / 2).to(torch.uint8)
    return QuantizedWeight(
        in_features=in_features,
        codes=pack_codes(codes[: weight.numel()].view(out_features, in_features)),
        scales=scales,
        zeros=None,
        table=NF4_TABLE,
        block=NF4_BLOCK,
    )


_QUANTIZERS: Mapping[str, Quantize] = {"int8": quantize_int8, "bitsandbytes": quantize_nf4}


def in_flight(wanted: str | None, checkpoint: QuantizedCheckpoint | None) -> Quantize | None:
    """Return what plain weights go through, None for nothing; ConfigError if the checkpoint is another's.

    `wanted` is `EngineConfig.quantization`.
    """
    if checkpoint is None:
        if wanted is None or wanted in _QUANTIZERS:
            return None if wanted is None else _QUANTIZERS[wanted]
        raise ConfigError(
            f"quantization is {wanted!r}, but the checkpoint is not quantised; give one that {wanted} has "
            f"quantised, or None, or one of {', '.join(_QUANTIZERS)} to quantise it on the way in"
        )
    if wanted not in (None, checkpoint.quant_method):
        raise ConfigError(
            f"quantization is {wanted!r}, but the checkpoint is quantised by {checkpoint.quant_method}; "
            "give None, or the plain checkpoint"
        )
    return None

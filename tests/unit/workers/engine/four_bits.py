"""NF4 and FP4 by their published tables: the oracle of everything that reads or writes such weights.

bitsandbytes' own functions cannot be it: on AVX512 version 0.50.2 dequantises wrongly if the width is no
multiple of 64. They are compared with this elsewhere. Sources: NF4's values, QLoRA (Dettmers et al., 2023),
appendix E; FP4's values, blocks and double quantisation, the documentation of bitsandbytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on
# A sign bit, two of exponent and one of mantissa; the magnitudes are twelfths, but for the subnormal one.
_FP4_MAGNITUDES = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
FP4 = torch.cat([_FP4_MAGNITUDES, -_FP4_MAGNITUDES])
TABLES = {"nf4": NF4, "fp4": FP4}
_NESTED_BLOCK = 256


class Quantized(NamedTuple):
    """Codes of a weight, flattened, and the largest magnitude of each block of it."""

    codes: Tensor  # [num_weights] int64
    absmax: Tensor  # [num_blocks] float32


def quantized(weight: Tensor, kind: str, block: int = 64) -> Quantized:
    """Give every weight the nearest of the table's 16 values times its block's largest magnitude."""
    flat = weight.float().flatten()
    absmax = torch.stack([part.abs().max() for part in flat.split(block)])
    scaled = flat / _of_each_weight(absmax, block, flat.numel())
    return Quantized((scaled.unsqueeze(1) - TABLES[kind]).abs().argmin(dim=1), absmax)


def dequantized(weight: Quantized, kind: str, shape: tuple[int, ...], block: int = 64) -> Tensor:
    """Look every code up and multiply it with its block's largest magnitude."""
    values = TABLES[kind][weight.codes]
    return (values * _of_each_weight(weight.absmax, block, values.numel())).view(shape)


def stored(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Dequantise the weight `name` of a file that bitsandbytes wrote."""
    (kind,) = (kind for kind in TABLES if f"{name}.quant_state.bitsandbytes__{kind}" in tensors)
    state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__{kind}"].tolist()))
    torch.testing.assert_close(tensors[f"{name}.quant_map"], TABLES[kind], rtol=0, atol=0)
    packed = tensors[name].contiguous().view(torch.uint8).flatten().long()
    codes = torch.stack([packed // 16, packed % 16], dim=1).flatten()
    absmax = tensors[f"{name}.absmax"]
    if "nested_offset" in state:
        largest = _of_each_weight(tensors[f"{name}.nested_absmax"], _NESTED_BLOCK, absmax.numel())
        absmax = tensors[f"{name}.nested_quant_map"][absmax.long()] * largest + state["nested_offset"]
    return dequantized(Quantized(codes, absmax), kind, tuple(state["shape"]), state["blocksize"])


def _of_each_weight(of_blocks: Tensor, block: int, num_weights: int) -> Tensor:
    return of_blocks[torch.arange(num_weights) // block]
